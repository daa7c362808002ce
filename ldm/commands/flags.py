"""Flags that several verbs share."""

from __future__ import annotations

from ldm.flags import Parser


def made(verb: str, description: str, *, models_dir: bool = False) -> Parser:
    """A parser with the flags that every verb has."""
    parser = Parser(prog=f"ldm {verb}", description=description, allow_abbrev=False)
    if models_dir:
        text = "a folder of model files, of A1111's or ComfyUI's layout or any, or ComfyUI's extra_model_paths.yaml; may be repeated"
        parser.add_argument("--models-dir", action="append", default=[], metavar="FOLDER", help=f"{text} (also LDM_MODELS_DIR)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
