"""Names from patterns, and that none leads out of the folder of the pictures."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm import naming
from ldm.errors import InputError, LdmError
from ldm.options import Job

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
JOB = Job("a red apple", None, 64, 32, 20, 5.0, "euler", "karras", None, 7, 1)


def values(**changes: Any) -> dict[str, Any]:
    return {**naming.values(JOB, seed=9, index=3, batch=2, model="sd_xl.safetensors", now=NOW), **changes}


def fill(pattern: str, **changes: Any) -> str:
    return naming.parse(pattern).fill(values(**changes))


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{date}/{index:05}-{seed}", "2026-01-02/00003-9"),
        ("{model}_{width}x{height}_{steps}_{cfg}_{sampler}_{schedule}", "sd_xl_64x32_20_5_euler_karras"),
        ("{time} {batch} {profile} {prompt}", "030405 2 comfyui a red apple"),
        ("{cfg:.1f} {cfg:05.1f} {index:3} {index:03d} {index}", "5.0 005.0 003 003 3"),
        ("{{{seed}}}", "{9}"),
        ("猫/{seed}é", "猫/9é"),
        ("plain", "plain"),
    ],
)
def test_words(pattern: str, name: str) -> None:
    assert fill(pattern) == name


def test_every_word_has_a_value() -> None:
    assert set(naming.NUMBERS) | set(naming.TEXTS) == set(values())


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{seed.__class__}", "column 1: unknown word 'seed.__class__'"),
        ("a{seeed}", "column 2: unknown word 'seeed': did you mean seed"),
        ("{seed[0]}", "unknown word"),
        ("{seed!r}", "unknown word"),
        ("{}", "unknown word ''"),
        ("a{", "column 2: a brace alone"),
        ("a}b", "column 2: a brace alone"),
        ("{seed:>9}", "seed takes no format '>9': give one such as 05"),
        ("{seed:999}", "takes no format"),
        ("{seed:.1f}", "takes no format"),
        ("{cfg:e}", "cfg takes no format 'e': give one such as .1f"),
        ("{prompt:9}", "prompt takes no format '9': give none, it is text"),
        ("{seed:{steps}}", "a brace alone"),
        ("../{seed}", "leads outside"),
        ("/tmp/{seed}", "leads outside"),
        ("{seed}/", "leads outside"),
        ("", "leads outside"),
        ("a\\{seed}", r"the character '\\\\' cannot be"),
        ("a:{seed}", "the character ':' cannot be"),
        ("a\n{seed}", r"the character '\\n' cannot be"),
        ("NUL/{seed}", "'NUL' is a device on Windows"),
        ("con.{seed}", "is a device on Windows"),
        ("{seed}.", "hides or changes"),
        (".{seed}", "hides or changes"),
        ("x" * 241, "has 241 bytes, the limit is 240"),
        ("é" * 121, "has 242 bytes"),
        ("a/" * 9 + "b", "9 folders are more than 8"),
        ("x" * 1001, "too many"),
    ],
)
def test_patterns_that_are_refused(pattern: str, said: str) -> None:
    assert said.replace("\\\\", "\\") in refusal(naming.parse, pattern)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a/b\\c:d*e?f\"g<h>i|j%k", "a_b_c_d_e_f_g_h_i_j_k"),
        ("  many   spaces \t\n and lines ", "many spaces and lines"),
        ("con", "_con"),
        ("Aux.txt", "_Aux.txt"),
        ("COM¹", "_COM¹"),
        ("...", "_"),
        ("", "_"),
        ("\0\x1b", "__"),
        ("-rf", "rf"),
        ("e\u0301", "é"),
        ("a\u202eb\u2215c\uff0fd", "a_b_c_d"),
        ("x" * 300, "x" * 100),
        ("🐱" * 300, "🐱" * 25),
        ("é" + "猫" * 300, "é" + "猫" * 32),
        ("{seed}", "{seed}"),
    ],
)  # fmt: skip
def test_what_a_prompt_becomes(prompt: str, name: str) -> None:
    assert fill("{prompt}", prompt=prompt) == name


@given(st.text())
def test_any_prompt_has_a_name_that_is_one(prompt: str) -> None:
    name = fill("{prompt}-{seed}", prompt=prompt)
    assert "/" not in name
    assert name.endswith("-9"), "the seed is never cut off"
    assert len(name.encode()) < naming.NAME_BYTES
    assert naming.clean(naming.clean(prompt)) == naming.clean(prompt)


@given(st.text(alphabet=st.sampled_from("{}:/.\\ ~a0seedcfgprompt-%")) | st.text())
def test_any_pattern_has_an_answer(text: str) -> None:
    try:
        name = fill(text)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(part not in ("", ".", "..") for part in name.split("/"))


def test_too_much_text_is_refused_and_not_cut() -> None:
    assert "has 300 bytes, the limit is 240" in refusal(lambda: fill("{prompt}{model}{prompt}", prompt="x" * 300, model="y" * 300))


def test_a_taken_name_is_followed_by_the_next(tmp_path: Path) -> None:
    numbered = naming.parse("{date}/{index:05}-{seed}").candidates(tmp_path, values(), ".png")
    assert [path.relative_to(tmp_path).as_posix() for path in islice(numbered, 2)] == ["2026-01-02/00003-9.png", "2026-01-02/00004-9.png"]
    plain = naming.parse("{seed}").candidates(tmp_path, values(), ".webp")
    assert [path.name for path in islice(plain, 3)] == ["9.webp", "9-1.webp", "9-2.webp"]


def test_names_of_prompt_files() -> None:
    assert naming.literal("dogs/rex.PNG") == "dogs/rex"
    assert naming.literal("{seed}") == "{seed}"
    assert "leads outside" in refusal(naming.literal, "../rex")


def test_folders_are_made_and_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    path = naming.place(tmp_path / "root", "a/b/c.png")
    assert path == tmp_path / "root" / "a" / "b" / "c.png"
    assert (tmp_path / "real" / "a" / "b").is_dir()
    assert naming.place(tmp_path / "root", "a/b/c.png") == path
    assert naming.place(tmp_path / "new" / "deep", "x.png").parent.is_dir()


@pytest.mark.parametrize("link", ["a", "a/b", "a/b/c.png"])
def test_a_link_in_the_way_is_refused(tmp_path: Path, link: str) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    (root / link).parent.mkdir(parents=True)
    away.mkdir()
    (root / link).symlink_to(away)
    assert "a link of this name" in refusal(naming.place, root, "a/b/c.png")
    assert os.listdir(away) == []


def test_other_things_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    assert "a file of this name is in the way" in refusal(naming.place, tmp_path, "a/b.png")
    (tmp_path / "b.png").mkdir()
    assert "a folder of this name is in the way" in refusal(naming.place, tmp_path, "b.png")
    os.mkfifo(tmp_path / "c.png")
    assert "no regular file" in refusal(naming.place, tmp_path, "c.png")
    with pytest.raises(LdmError, match="cannot write"):
        naming.place(tmp_path / "a", "b.png")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "", ".", "a\0", "a\\b", "\ud800"])
def test_unchecked_names_cannot_lead_out_either(tmp_path: Path, name: str) -> None:
    assert "leads outside" in refusal(naming.place, tmp_path / "root", name)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["a/b.png", "a/b/c.png"])
def test_a_link_that_appears_right_after_the_look_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    root.mkdir()
    away.mkdir()
    (root / "a").symlink_to(away)
    monkeypatch.setattr(naming, "_check_entry", lambda mode, name, kind: None)
    with pytest.raises(LdmError, match="cannot write"):
        naming.place(root, name)
    assert os.listdir(away) == []


def test_a_folder_that_turns_into_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    """Another process swaps the folder for a link, again and again; no folder is made where it leads."""
    root, away = tmp_path / "root", tmp_path / "away"
    (root / "real").mkdir(parents=True)
    away.mkdir()
    (root / "link").symlink_to(away)
    done = threading.Event()

    def swap() -> None:
        for at in count():
            if done.is_set():
                return
            for name in ("real", "link"):
                with contextlib.suppress(OSError):  # a folder of this name was made meanwhile
                    os.rename(root / name, root / "a")
                with contextlib.suppress(OSError):
                    os.rename(root / "a", root / (f"made{at}" if (root / name).exists() else name))

    thread = threading.Thread(target=swap)
    thread.start()
    for at in range(400):
        with contextlib.suppress(LdmError):
            naming.place(root, f"a/{at}/x.png")
    done.set()
    thread.join()
    assert os.listdir(away) == []
