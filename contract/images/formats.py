"""What a file that is not decoded is called, by its first bytes: people have to be told what to convert."""

from typing import Final

_LOOKED_AT: Final = 4096

_BRANDS: Final = dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis"), "HEIC")
_BRANDS_OF_MANY: Final = {b"mif1": "HEIF", b"msf1": "HEIF"} | dict.fromkeys((b"avif", b"avis"), "AVIF that is broken")
"""Of ISO media files; those of the second kind stand beside one that says more."""

_RARE_TIFF: Final = "TIFF that is broken or of a rare kind, such as of 64 bits or two channels"
_STARTS: Final = {
    "PNG that is broken": (b"\x89PNG",),
    "JPEG that is broken": (b"\xff\xd8",),
    "GIF that is broken": (b"GIF8",),
    _RARE_TIFF: (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "a pointer of Git LFS (git lfs pull brings the image)": (b"version https://git-lfs",),
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
    """Return what the bytes of a file that cannot be identified as an image are of, as far as their beginning tells."""
    head = data[:_LOOKED_AT]
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
        if b"<html" in head or b"<!doctype html" in head:  # which may hold an SVG
            return "a web page"
        if b"<svg" in head:
            return "SVG"
    return "something else"


def _name_media(head: bytes) -> str:
    """The major brand, and those that the file is compatible with, four letters each behind the version."""
    end = min(int.from_bytes(head[:4]), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    for known in (_BRANDS, _BRANDS_OF_MANY):
        for brand in brands:
            if brand in known:
                return known[brand]
    return "a video, or an image of that family"
