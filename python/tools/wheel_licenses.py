# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Puts the licences of the libraries inside a wheel into it (PEP 639), from the system that it was built on."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

__all__ = ["add_licenses", "bundled_libraries", "license_texts"]

FOLDER = "third-party"
# SPDX expressions by the beginning of a library's name.
EXPRESSIONS = {
    "libopenblas": "BSD-3-Clause",
    "libgfortran": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libquadmath": "LGPL-2.1-or-later",
}
SWIFT = "swift-runtime"


def bundled_libraries(names: list[str]) -> list[str]:
    """Return the names of the libraries that auditwheel has put into a wheel."""
    return sorted(Path(name).name for name in names if ".libs/" in name and not name.endswith("/"))


def original_of(library: str, linked: list[Path]) -> Path:
    """Return where a library was copied from; auditwheel adds a part of a checksum to its name."""
    for path in linked:
        stem, dot, rest = path.name.partition(".")
        if re.fullmatch(rf"{re.escape(stem)}-[0-9a-f]+{re.escape(dot + rest)}", library):
            return path
    raise SystemExit(f"{library}: no library of this system that the extension is linked with has this name")


def linked_libraries(extension: Path) -> list[Path]:
    """Return the files that the dynamic linker finds for an extension."""
    listing = subprocess.run(["ldd", str(extension)], capture_output=True, text=True, check=True).stdout
    return [Path(path).resolve() for path in re.findall(r"=> (/\S+)", listing)]


def debian_copyright(library: Path) -> Path:
    """Return the file in which Debian keeps the licence of a library's package."""
    if shutil.which("dpkg-query") is None:
        raise SystemExit(
            f"{library}: its licence is found through dpkg-query, which is not here; build on Debian or Ubuntu"
        )
    # Files that moved from /lib to /usr/lib may be registered under either.
    for path in (library, Path(str(library).removeprefix("/usr"))):
        found = subprocess.run(["dpkg-query", "-S", str(path)], capture_output=True, text=True, check=False).stdout
        if found:
            return Path("/usr/share/doc", found.partition(":")[0], "copyright")
    raise SystemExit(f"{library}: expected it to belong to a Debian package, whose licence goes into the wheel")


def license_texts(libraries: list[str], linked: list[Path]) -> dict[str, str]:
    """Return the licence files of the libraries and of the Swift runtime, and the general ones that these refer to."""
    texts = {}
    for library in libraries:
        copyright_file = debian_copyright(original_of(library, linked))
        texts[f"{re.split(r'[-.]', library)[0]}.txt"] = copyright_file.read_text(errors="replace")
    swift = shutil.which("swift")
    if swift is None:
        raise SystemExit("no `swift` was found, whose runtime's licence goes into the wheel")
    texts[f"{SWIFT}.txt"] = (Path(swift).resolve().parents[1] / "share/swift/LICENSE.txt").read_text()
    general = {
        name for text in texts.values() for name in re.findall(r"/usr/share/common-licenses/([A-Z][\w.-]*\w)", text)
    }
    for name in sorted(general):
        path = Path("/usr/share/common-licenses", name)
        if path.is_file():
            texts[f"{name}.txt"] = path.read_text(errors="replace")
    return texts


def expression(libraries: list[str]) -> str:
    """Return the SPDX expression of a wheel with these libraries inside."""
    parts = ["Apache-2.0"]
    for library in libraries:
        known = [value for start, value in EXPRESSIONS.items() if library.startswith(start)]
        if not known:
            raise SystemExit(f"{library}: add the SPDX expression of its licence to {Path(__file__).name}")
        parts += known
    return " AND ".join(f"({part})" if " " in part else part for part in dict.fromkeys(parts))


def add_licenses(wheel: Path, texts: dict[str, str]) -> None:
    """Write licence texts into a wheel, and name them in its METADATA and RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    libraries = bundled_libraries([info.filename for info in files])
    (metadata,) = (info for info in files if re.fullmatch(r"[^/]+\.dist-info/METADATA", info.filename))
    folder = metadata.filename.rpartition("/")[0]
    head, blank, body = files[metadata].decode().partition("\n\n")
    head = re.sub(r"^License-Expression: .*$", f"License-Expression: {expression(libraries)}", head, flags=re.MULTILINE)
    head += "".join(f"\nLicense-File: {FOLDER}/{name}" for name in sorted(texts))
    files[metadata] = (head + blank + body).encode()
    for name, text in sorted(texts.items()):
        info = zipfile.ZipInfo(f"{folder}/licenses/{FOLDER}/{name}", metadata.date_time)
        info.external_attr = metadata.external_attr
        files[info] = text.encode()
    (record,) = (info for info in files if info.filename == f"{folder}/RECORD")
    files.pop(record)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    for info, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow([info.filename, f"sha256={digest}", len(content)])
    writer.writerow([record.filename, "", ""])
    files[record] = table.getvalue().encode()
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in files.items():
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    partial.replace(wheel)
