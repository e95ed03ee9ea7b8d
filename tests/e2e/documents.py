"""What README and docs tell a user to type: read out of them, so that tests can do it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "make",
    "python",
    "torchrun",
    "ray",
    "sbatch",
    "kubectl",
    "pip",
    "tensorboard",
    "kill",
    "curl",
    ".",
    "export",
}
# What a user puts something of their own for, and what stands for it where only the form is checked.
STAND_INS = {
    "CONFIG": "launch/configs/smoke.toml",
    "my.toml": "launch/configs/smoke.toml",
    "FOLDER": "runs/folder",
    "HOST": "host",
}
_ASSIGNED = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """Commands that stand together, a line each, and what the page shows of their output."""

    page: str
    line: int
    commands: tuple[str, ...]
    shown: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Everything that tells users what to type."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The commands in a page: fenced ones, and indented ones behind a `$`, with the output that follows."""
    lines, found, at = page.read_text().splitlines(), [], 0
    name = str(page.relative_to(ROOT))
    while at < len(lines):
        fence = re.fullmatch(r"\s*```(\w*)", lines[at])
        if fence:
            end = next(n for n in range(at + 1, len(lines)) if lines[n].strip() == "```")
            body = _joined(lines[at + 1 : end])
            if fence[1] in ("bash", "sh", "shell", "console") or (not fence[1] and body and all(map(is_command, body))):
                found.append(Block(name, at + 1, tuple(line.removeprefix("$ ") for line in body)))
            at = end + 1
        elif lines[at].startswith("    $ "):
            end = next((n for n in range(at + 1, len(lines)) if lines[n] and lines[n][:4] != "    "), len(lines))
            shown = tuple(line[4:] for line in lines[at + 1 : end] if line.strip())
            found.append(Block(name, at + 1, (lines[at][6:],), shown))
            at = end
        else:
            at += 1
    return found


def is_command(line: str) -> bool:
    """Whether a line of a block without a language is one to type."""
    words = line.split()
    return words[0] in PROGRAMS or bool(_ASSIGNED.match(words[0]))


def expanded(block: Block) -> list[list[str]]:
    """Each command of a block as words: variables filled in, comments and `&` gone."""
    variables: dict[str, str] = {}
    found = []
    for line in block.commands:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        while words and _ASSIGNED.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            if not words:
                variables[name] = value
        if words:
            found.append([word for word in words if word != "&"])
    return found


def inline(page: Path) -> list[str]:
    """What stands between backquotes in the text."""
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def links(page: Path) -> list[str]:
    """The files that a page links to."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    return [link for link in found if "://" not in link]


def _joined(lines: list[str]) -> list[str]:
    """Lines without blanks and comments, those ended by a backslash joined with the next."""
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
