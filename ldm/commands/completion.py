"""`ldm completion SHELL`: a script by which the shell completes verbs, flags and their values; from the declarations, without torch.

    eval "$(ldm completion bash)"        # or zsh; fish: ldm completion fish | source
"""

from __future__ import annotations

from ldm import resources
from ldm.commands import VERBS
from ldm.diffusion import names
from ldm.flags import Parser
from ldm.options import KNOBS
from ldm.values import Choice

BASH = """_ldm() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{verbs}" -- "$word")); return; fi
    case "$before" in
{cases}
    esac
    case "$word" in
        -*) [ "${{COMP_WORDS[1]}}" = sample ] && COMPREPLY=($(compgen -W "{flags}" -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _ldm ldm
"""
ZSH = "autoload -Uz compinit bashcompinit\ncompinit\nbashcompinit\n"


def run(argv: list[str]) -> int:
    """Print the script; the exit code."""
    shell = parser().parse_args(argv).shell
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](), end="", flush=True)
    return 0


def parser() -> Parser:
    made = Parser(prog="ldm completion", description="Print a script that completes ldm's words in a shell.", allow_abbrev=False)
    made.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that reads it")
    return made


def values() -> dict[str, list[str]]:
    """The words that a flag takes, by its field, where they are a known few."""
    named = {"sampler": list(names.SOLVERS), "schedule": list(names.SPACINGS), "profile": resources.names("profiles")}
    named |= {"preset": resources.names("presets"), "dtype": ["auto", "float32", "bfloat16", "float16"], "device": ["auto", "cpu", "cuda"]}
    named["vae_dtype"] = named["dtype"]
    return named | {name: list(knob.parse.words) for name, knob in KNOBS.items() if isinstance(knob.parse, Choice)}


def bash() -> str:
    known = values()
    lines = [
        f"        {'|'.join(KNOBS[name].flags)}) COMPREPLY=($(compgen -W \"{' '.join(words)}\" -- \"$word\")); return ;;"
        for name, words in known.items()
    ]
    flags = " ".join(flag for knob in KNOBS.values() for flag in knob.flags)
    return BASH.format(verbs=" ".join(VERBS), cases="\n".join(lines), flags=flags)


def zsh() -> str:
    return ZSH + bash()


def fish() -> str:
    lines = [f"complete -c ldm -n __fish_use_subcommand -f -a {verb} -d '{text}'" for verb, text in VERBS.items()]
    known = values()
    for name, knob in KNOBS.items():
        if knob.flags:
            options = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in knob.flags)
            takes = f" -x -a '{' '.join(known[name])}'" if name in known else "" if knob.parse is None else " -r"
            text = knob.help.replace("'", "’")
            lines.append(f"complete -c ldm -n '__fish_seen_subcommand_from sample' {options}{takes} -d '{text}'")
    return "\n".join(lines) + "\n"
