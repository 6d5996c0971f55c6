from deploy.images.sbom import debian_packages

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u14
Description: GNU C Library: Shared libraries
 Version: of nothing

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1:2.0

Package: libstdc++6
Status: install ok installed
Architecture: amd64
Version: 1:12.2.0-14+deb12u1
"""


def test_installed_packages_are_components():
    """Each has a package URL, whose special characters are escaped; what was removed is not there."""
    first, second = debian_packages(STATUS)
    assert first["name"] == "libc6"
    assert first["version"] == "2.36-9+deb12u14"
    assert first["purl"] == first["bom-ref"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"
    assert second["purl"] == "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14%2Bdeb12u1?arch=amd64"
    assert {first["type"], second["type"]} == {"library"}


def test_nothing_is_installed_in_an_empty_image():
    """An empty status file has no packages."""
    assert list(debian_packages("")) == []
