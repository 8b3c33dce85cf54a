"""The build backend that pip asks, and that refuses: the files are used from their folder."""


def refuse(*_, **__):
    """Every hook of PEP 517."""
    raise SystemExit("llama2.py is not installed: run its files from their folder, or copy them beside your own code")


get_requires_for_build_wheel = get_requires_for_build_editable = get_requires_for_build_sdist = refuse
prepare_metadata_for_build_wheel = prepare_metadata_for_build_editable = refuse
build_wheel = build_editable = build_sdist = refuse
