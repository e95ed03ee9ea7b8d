"""What stands in captions of the web and of models and is no prose: markup, addresses, file names, damage, nothing."""

import json
import re

_TAGS = (
    "a|abbr|b|blockquote|body|br|button|center|code|dd|div|dl|dt|em|figcaption|figure|font|form|h[1-6]|head|hr|html|i"
    "|iframe|img|input|li|link|meta|noscript|ol|option|p|pre|script|section|small|span|strong|style|sub|sup|svg|table"
    "|tbody|td|th|thead|title|tr|u|ul|video"
)
_ITEM = r"[ \t]{0,20}(?:[-*+•·]|\d{1,2}[.)、])[ \t]{1,20}\S[^\n]*"
_MARKUP = re.compile(
    "|".join(
        (
            rf"</?(?:{_TAGS})(?:\s[^<>]{{0,500}})?/?>",
            r"<!--|<!doctype|<%|<\?(?:php|xml)",
            r"&(?:amp|nbsp|lt|gt|quot|apos|[lr][sd]quo|hellip|[mn]dash|copy|reg|trade|#\d{2,6}|#x[0-9a-f]{2,6});",
            r"^\#{1,6}\ (?!\d)\S",  # a heading; "# 1 Dad" is none
            r"```|~~~",
            r"(?<![\w*])\*\*(?=\S)[^*\n]{1,200}\*\*",
            r"!?\[[^\]\n]{0,200}\]\((?:https?:|www\.|/|[^)\s]{1,200}\.(?:jpe?g|png|gif|webp|html?))[^)\n]{0,300}\)",
            r"^[ \t]{0,20}\|[^\n|]*\|[^\n]*\|[ \t]{0,20}$|^[ \t]{0,20}\|?[ \t]{0,20}:?-{3,40}:?[ \t]{0,20}\|",
            rf"^{_ITEM}(?:\n{{1,2}}{_ITEM}){{2}}",
            r"\[/?(?:b|i|u|url|img|quote|size|color|caption)(?:[ =][^\]\n]{0,200})?\]",
            r"\{\{[^{}\n]{1,100}\}\}|\$\{[\w.]{1,60}\}",
            r"<\|[\w-]{1,40}\|>|</?(?:image|caption|s|bos|eos|pad|unk|ref|box|think|answer)>|\[/?inst\]",
            r"\bfunction ?\(|\bdocument\.(?:get|write|query)|\bwindow\.(?:location|onload)",
            r"\A\s*\{\s*[\"'][^\"'\n]{1,60}[\"']\s*:",
        )
    ),
    re.IGNORECASE | re.MULTILINE,
)
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|「[^」\n]*」")
_ADDRESS = re.compile(
    r"(?:https?://|www\.)\S+|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", re.IGNORECASE
)
_SITE = re.compile(r"(?:[a-z0-9-]+\.)+(?:com|net|org|info|io|cn|de|fr|jp|ru|uk|co)(?:/\S*)?", re.IGNORECASE)
_CAMERA = (
    "img|image|dsc[nf]?|pict?|picture|photo|mvimg|pxl|gopr|dji|vid|scan|scr|capture|untitled|screen ?shot"
    "|whatsapp image|mmexport|微信图片|微信截图|qq图片|屏幕截图|屏幕快照|截屏|截图|图片|照片"
)
_FILE = re.compile(
    r"[^\n/\\]{1,200}\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic|avif|svg|psd|cr2|nef|arw|dng|raw|mp4|mov|pdf)"
    rf"|(?:{_CAMERA})[-_ .#(]*\d[\d\-_ .:()]*(?:at|wa|am|pm)?[\d\-_ .:()]*(?:am|pm)?"
    r"|p\d{6,}|(?=.*\d)[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.IGNORECASE,
)
# Control characters but layout, direction overrides, what no decoder knew, private use.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ufffd\ufffe\uffff\ue000-\uf8ff]")
# UTF-8 read as Latin-1 or GBK.
_MOJIBAKE = re.compile(r"[ÃÂ][\u0080-\u00bf]|â€|ï¿½|锟斤拷|烫烫烫|屯屯屯")
_NOTHING = frozenset(
    """
    image|images|img|photo|photos|photograph|picture|pictures|pic|untitled|no title|null|none|nan|undefined|n/a|na|alt
    alt text|alt tag|image alt|image alt text|image description|description|caption|captions|title|placeholder
    thumbnail|default|no description|no caption|no caption available|no description available|no image
    no image available|image not available|image not found|image unavailable|photo not available|not available|loading
    click to enlarge|enlarge image|click to view|view larger image|image placeholder|this is an image|an image
    a picture|a photo|page not found|404 not found|access denied
    图片|照片|图像|图|配图|插图|无标题|未命名|暂无描述|暂无图片|暂无标题|暂无|无|图片描述|图片说明|图片标题|图片加载中
    加载中|点击查看大图|点击查看原图|点击放大|查看大图|缩略图|封面图|默认图片|未知|描述|标题|说明|这是一张图片|一张图片
    一张照片
    """.replace("\n", "|")
    .replace("    ", "")
    .split("|")
)
# Characters; longer ones take some of the patterns too long.
_LONGEST_NAME = 255
_EDGES = " \t\r\n.,:;!?()[]<>{}*_-–—\"'“”‘’…。，：；！？（）【】《》"


def markup(text: str) -> str:
    """The first HTML, Markdown, JSON, template or token of a model that `text` does not quote; "" if there is none."""
    found = _MARKUP.search(_QUOTED.sub('""', text)) or (_MARKUP.match(text) if text.lstrip()[:1] in "[{<" else None)
    if found:
        return found[0].strip()
    return text.strip() if _is_json(text) else ""


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        return bool(json.loads(text))
    except (ValueError, RecursionError):
        return False


def address(text: str) -> str:
    """The address that `text` is, or that has more letters than all else in it; "" if there is none."""
    found = _ADDRESS.findall(text)
    if found and _letters(_ADDRESS.sub("", text)) < sum(_letters(one) for one in found):
        return found[0]
    bare = text.strip()
    return bare if len(bare) <= _LONGEST_NAME and _SITE.fullmatch(bare) else ""


def _letters(text: str) -> int:
    return sum(char.isalpha() for char in text)


def file_name(text: str) -> str:
    """`text`, if it is the name of a file or what a camera numbers pictures by; "" if not."""
    name = text.strip()
    return name if len(name) <= _LONGEST_NAME and _FILE.fullmatch(name) else ""


def damage(text: str) -> str:
    """The first character in `text` that nobody writes, or the first that was decoded wrongly; "" if there is none."""
    control = _CONTROL.search(text)
    if control:
        return f"U+{ord(control[0]):04X}"
    found = _MOJIBAKE.search(text)
    return found[0] if found else ""


def says_nothing(text: str) -> str:
    """Why there is nothing to learn from `text`: no letter, or a word that stands for a missing one; "" if there is."""
    if not any(char.isalpha() for char in text):
        return "no letters"
    bare = " ".join(text.lower().split()).strip(_EDGES)
    return bare if bare in _NOTHING or bare.startswith("lorem ipsum") else ""
