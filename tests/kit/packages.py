"""Installed packages for tests of plugins: modules and a dist-info folder, written by hand."""

from collections.abc import Mapping


def write_package(
    folder,
    name: str,
    entries: Mapping[str, Mapping[str, str]],
    *,
    code: str | None = "",
    version: str = "1.0",
    metadata: str = "",
) -> None:
    """Writes a package as pip would install it.

    Args:
        folder: a folder of `sys.path`.
        name: name of the package; its module has underscores.
        entries: import paths by name, by group without `miniformer.`.
        code: the module's source; None: no module.
        version: version of the package.
        metadata: further lines of its metadata.
    """
    module = name.replace("-", "_")
    if code is not None:
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", metadata]
    (info / "METADATA").write_text("\n".join(filter(None, lines)) + "\n", encoding="utf-8")
    groups = [
        "\n".join([f"[miniformer.{group}]", *(f"{key} = {path}" for key, path in items.items())])
        for group, items in entries.items()
    ]
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n", encoding="utf-8")
