"""One HTML file that needs nothing else and may load nothing else.

What the page shows is data of strangers: captions, keys, tags. It lies in the file as JSON without a single `<`, is
parsed as JSON, and becomes text nodes; and the policy in the file's head runs no script but the page's own.
"""

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

# In this order one script: each may use what is above it.
SCRIPTS = ("elements", "facts", "keep", "recipe", "chart", "samples", "funnel", "scores", "shares", "page")

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<noscript>This page draws itself: allow its script, which loads nothing.</noscript>
<script type="application/json" id="facts">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def document(title: str, facts: dict[str, Any]) -> str:
    """The page that shows `facts`."""
    folder = files("launch.page")
    style = (folder / "style.css").read_text("utf-8")
    parts = [(folder / "script" / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
    script = '"use strict";\n' + "\n".join(parts)
    assert "</" not in style and "</" not in script, "a closing tag would end the page's own style or script"
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    return _DOCUMENT.format(policy=policy, title=html.escape(title), style=style, data=embedded(facts), script=script)


def embedded(value: Any) -> str:
    """`value` as JSON that stands inside of a script element and cannot end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
