"""Names of file formats that are not decoded, by their first bytes, for error messages."""

from typing import Final

_PREFIX_BYTES: Final = 4096

_BRANDS: Final = dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis"), "HEIC")
_GENERIC_BRANDS: Final = {b"mif1": "HEIF", b"msf1": "HEIF"} | dict.fromkeys((b"avif", b"avis"), "AVIF that is broken")
"""Brands of ISO media files; the second group is generic, and counts only without one of the first."""

_RARE_TIFF: Final = "TIFF that is broken or of a rare kind, such as of 64 bits or two channels"
_STARTS: Final = {
    "PNG that is broken": (b"\x89PNG",),
    "JPEG that is broken": (b"\xff\xd8",),
    "GIF that is broken": (b"GIF8",),
    _RARE_TIFF: (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "a Git LFS pointer (run git lfs pull to get the image)": (b"version https://git-lfs",),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"),
    "OpenEXR": (b"v/1\x01",),
    "Radiance HDR": (b"#?RADIANCE",),
    "Photoshop": (b"8BPS",),
    "PDF": (b"%PDF",),
    "PostScript": (b"%!PS",),
    "FITS": (b"SIMPLE  =",),
    "an icon (ICO)": (b"\0\0\1\0",),
    "Netpbm": (b"P4", b"P5", b"P6"),
    "a zip archive": (b"PK\3\4",),
    "a gzip archive": (b"\x1f\x8b",),
}
_DICOM: Final = slice(128, 132)


def name_format(data: bytes) -> str:
    """Return the format of a file that is no decodable image, as far as its first bytes tell."""
    head = data[:_PREFIX_BYTES]
    if head[_DICOM] == b"DICM":
        return "DICOM"
    if head[4:8] == b"ftyp":
        return _name_media(head)
    for name, starts in _STARTS.items():
        if head.startswith(starts):
            return name
    return _name_markup(head.removeprefix(b"\xef\xbb\xbf").lstrip().lower())


def _name_markup(head: bytes) -> str:
    if head.startswith(b"<"):
        if b"<html" in head or b"<!doctype html" in head:  # may contain an SVG
            return "a web page"
        if b"<svg" in head:
            return "SVG"
    return "something else"


def _name_media(head: bytes) -> str:
    """Return the name of the major brand, or of the compatible brands after the version, of four letters each."""
    end = min(int.from_bytes(head[:4]), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    for known in (_BRANDS, _GENERIC_BRANDS):
        for brand in brands:
            if brand in known:
                return known[brand]
    return "a video, or an image of that family"
