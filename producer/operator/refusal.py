"""Words by which a language model says that it does not describe a picture, in English and Chinese.

Patterns are for text as `plain` leaves it. Their gaps are bounded, so that any text takes time in its length alone.
"""

import re

# What a sign, a card or a film says is no word of the model's.
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|「[^」]*」|『[^』]*』|《[^》]*》")
_WHOLE = re.compile(r"[\"“「](?P<inside>[^\"”」]*)[\"”」]\.?", re.DOTALL)
# Characters of the patterns below, as Taiwan and Hong Kong write them.
_SIMPLE = str.maketrans(
    "無圖張對這該為說請傳識別顯辦遺協幫處應讓個機語聽內問題標還實僅沒並會後載從違規範見",
    "无图张对这该为说请传识别显办遗协帮处应让个机语听内问题标还实仅没并会后载从违规范见",
)

_HAVE = r"(?:do not|don't) have the (?:ability|capability)"
_UNABLE = (
    rf"(?:can ?not|can't|could not|couldn't|unable to|not able to|will not|won't|{_HAVE}"
    r"|not (?:permitted|allowed|designed|programmed|equipped|capable))"
)
_BE = r"(?:'m| am|'re| are)"
_FIRST = rf"\b(?:i|we){_BE}?(?: (?:sorry|afraid|currently|simply|also|just|really))?,?(?: but)?(?: i{_BE}?)? "
_SORRY = r"(?:sorry|apologi[sz]e|apologies|unfortunately|regret|afraid)"
_PICTURE = r"(?:images?|pictures?|photo(?:graph)?s?|visuals?|files?|attachments?|urls?|links?)"
_WORDS = r"(?:captions?|descriptions?|requests?|questions?|prompts?|instructions?|content|titles?)"
_TOPIC = rf"\b(?:{_PICTURE}|{_WORDS})\b"
_PERSON = r"(?:person|people|individuals?|identit\w+)"
_GAP, _LONG = r"[^.!?]{0,40}", r"[^.!?]{0,60}"
# Nobody but a model does these to a picture or a request; seeing and opening need the picture named.
_SERVE = (
    r"(?:provid|help|assist|describ|generat|caption|compl[yi]|fulfil|answer|process|analy[sz]|discuss|comment|engag"
    r"|support|respond|interpret|speculat|transcrib)"
)
_MAKE = rf"(?:{_SERVE}|creat|writ|produc|mak|giv|identif)\w*"
_WAS = r"(?:was|were|is|has been|have been|seems? to be|appears? to be)"
_RULES = r"(?:guidelines|polic(?:y|ies)|programming|standards|rules)"
_ENGLISH = (
    rf"{_SORRY}\b[^.!?]{{0,50}}{_FIRST}{_UNABLE}(?: be able to)?(?: \w+){{0,2}}? {_SERVE}\w*",
    rf"{_SORRY}\b[^!?]{{0,50}}{_FIRST}{_UNABLE}{_LONG}{_TOPIC}",
    rf"{_FIRST}{_UNABLE}(?: be able to)?(?: \w+)? {_MAKE}(?! how| enough){_GAP}{_TOPIC}",
    rf"{_FIRST}{_UNABLE}(?: \w+)? (?:see|view|access|open|display|load|look at|read|perceive)"
    rf"(?: or \w+)?(?: \w+){{0,2}} {_PICTURE}\b",
    rf"{_FIRST}{_UNABLE}(?: \w+)? (?:identify|recogni[sz]e|name|determine|confirm){_GAP}\b(?:{_PERSON}|{_PICTURE})\b",
    rf"{_FIRST}{_UNABLE}[^.!?]{{0,20}} (?:tell|say|identify|determine|know) who (?:this|that|they|he|she|is|the)",
    rf"{_FIRST}{_UNABLE}(?: be able to)? (?:help|assist|comply)(?: you)?(?: with (?:that|this|it|your)|\b[.!]|$)",
    rf"{_FIRST}{_UNABLE} (?:provide|offer|give) (?:\w+ )?(?:assistance|help|support)\b",
    rf"{_FIRST}{_HAVE} to (?:{_SERVE}|see|view)\w*",
    rf"^(?:i'm |i am )?sorry,?\.?(?: but)? {_FIRST}{_UNABLE}(?: do (?:that|this|so))?[.!]?$",
    r"\b(?:i|we) (?:must|have to|need to|will)(?: respectfully| politely)? decline\b",
    rf"\bi (?:refuse|decline|prefer not|would rather not|do not want) to (?:{_SERVE}|creat|writ)\w*",
    rf"\bi'd (?:prefer|rather) not (?:to )?{_SERVE}\w*",
    rf"\b(?:not|don't feel|do not feel) comfortable (?:{_SERVE}|creat|with (?:this|that) request)\w*",
    rf"{_TOPIC}(?: \w+){{0,3}} (?:is|are) (?:inappropriate|unsuitable|not appropriate|not suitable) (?:for|to)\b",
    r"\b(?:sorry|apologi[sz]e)\b[^.!?]{0,40}\b(?:content|image|request)\b[^.!?]{0,20}\b(?:inappropriate|unsafe)\b",
    rf"\b{_RULES}(?: \w+)? (?:prevents?|forbids?|prohibits?|do(?:es)? not allow) (?:me|us)\b",
    r"\b(?:against|violat\w+)\b[^.!?]{0,20}"
    rf"\b(?:my|our|openai's|content|usage|safety|ethical|community) (?:\w+ )?{_RULES}\b",
    r"\b(?:your|this|the) request (?:was|has been) (?:rejected|denied|blocked|filtered)",
    r"\bcontent[_ ]policy[_ ]violation|\bi(?:'m| am) programmed to\b",
    rf"^(?:{_SORRY},? )?(?:but )?(?:unable to|cannot|can't|could not|failed to)(?: \w+)? {_MAKE}{_LONG}{_TOPIC}",
    rf"\b{_WORDS} (?:can ?not|can't|could not|couldn't) be (?:generat|provid|creat|produc|given|process|complet)",
    r"\bno (?:caption|description)s? (?:can|could) be\b",
    rf"\bno (?:\w+ )?{_PICTURE} (?:{_WAS} )?(?:provided|attached|uploaded|included|shared|given|visible)\b",
    rf"\b(?:didn't|did not|haven't|have not) (?:provide|attach|upload|include|share)d? (?:an?|any|the) {_PICTURE}",
    rf"\b(?:don't|do not|can't|cannot) see (?:any|an|your) (?:attached )?{_PICTURE}",
    r"\b(?:please|(?:could|can|would) you(?: please)?|if you(?: can| could)?) (?:re-?)?"
    rf"(?:upload|provide|attach|send|share) (?:\w+ )?(?:the|an|your|a|another) (?:\w+ )?{_PICTURE}",
    rf"\b{_PICTURE}(?: you \w+)?(?: itself)? (?:could not|couldn't|cannot|can't|failed to|did not) "
    r"(?:be )?(?:load|display|process|access|open|describ|analy)\w*",
    r"\bas an? (?:\w+ ){0,3}?(?:language model|ai model|ai assistant|ai|artificial intelligence|chatbot)\b"
    r"[^.!?]{0,20}(?:, ?| )(?:i|my|it(?:'s| is) not)\b",
    r"\bi(?:'m| am)(?: just| only| merely)? an? (?:\w+ ){0,3}?"
    r"(?:language model|ai model|ai assistant|ai(?=[,. ]*(?:and|so|$|[,.]))|chatbot|text-based)",
    r"\bi(?:'d| would) be (?:happy|glad) to (?:help|assist|describe)|\bis there anything else i can\b",
    r"\blet me know if you(?:'d like| would like| need| want| have)\b|\bi hope this (?:helps|description)\b",
    # What it says ahead of a description belongs to no caption either.
    r"^(?:sure|certainly|of course|absolutely)[,!.:]? (?:here|i can|i will|i'll|i'd)\b",
    r"^here(?:'s| is| are) (?:an?|the|your|my)(?: [\w-]+){0,4}? (?:caption|description)s?\b",
)

_BU = r"(?:无法|不能|没办法|没有办法|没法|不可以|未能|不便)"
_TU = r"(?:图|照片|画面|链接|附件|文件)"
_BAOQIAN = r"(?:抱歉|对不起|遗憾|不好意思|请原谅)"
_WO = r"我们?(?:暂时|目前|现在|也|并|还|实在|确实|是)*"
_KAN = r"(?:查看|看到|看见|显示|加载|读取|访问|打开)"
_GEI = (
    r"(?:提供|描述|识别|辨认|辨别|生成|回答|满足|协助|帮助|帮您|帮你|处理|分析|解析|给出|讨论|执行|响应|回应|评论"
    r"|撰写)"
)
_YU = r"[^。！？!?]"
_CHINESE = (
    rf"{_BAOQIAN}{_YU}{{0,24}}{_BU}{_YU}{{0,12}}?{_GEI}",
    rf"{_BAOQIAN}{_YU}{{0,24}}(?:{_BU}|没有){_YU}{{0,6}}?(?:{_KAN}|收到|找到){_YU}{{0,8}}{_TU}",
    rf"{_WO}{_BU}{_YU}{{0,10}}?{_GEI}{_YU}{{0,16}}(?:{_TU}|内容|请求|问题|描述|标题|信息|人物|身份|要求|指令)",
    rf"{_WO}{_BU}(?:直接)?{_KAN}{_YU}{{0,8}}{_TU}",
    rf"{_WO}{_BU}(?:为您|为你|对此|就此)?(?:直接)?(?:回答|满足|协助|处理|评论)",
    rf"我(?:拒绝|没有能力|没有办法|还?不会|不想)(?:{_GEI}|查看|看图)|我(?:看不到|看不见){_YU}{{0,8}}{_TU}",
    rf"(?:{_TU}|内容|请求){_YU}{{0,10}}(?:不当|不适宜|不合适|违规|敏感|被拒绝|被屏蔽){_YU}{{0,16}}(?:{_BU}|拒绝|不予)",
    rf"{_BU}(?:描述|查看|识别|生成)(?:该|此|这张|这幅|这个|您的)?(?:{_TU}|图像)",
    rf"^{_BU}{_YU}{{0,4}}?{_GEI}{_YU}{{0,10}}(?:{_TU}|内容|请求|描述|标题|说明)",
    r"(?:作为|身为)一?(?:个|名|款|种)?[^。！？!?，,]{0,6}?(?:ai|人工智能|语言模型|智能助手|聊天机器人)"
    rf"{_YU}{{0,12}}?[，,]?\s*(?:我|无法|不能)",
    r"我(?:只|仅仅|仅)?是一?(?:个|名|款|种)?[^。！？!?，,]{0,10}?(?:ai|人工智能|语言模型|聊天机器人)"
    r"(?:助手|模型|程序)?(?:[，,。！]|$)",
    rf"(?:没有|未|并未|尚未|还没有|似乎没有)(?:看到|提供|上传|收到|检测到|附上){_YU}{{0,6}}{_TU}",
    rf"请(?:您|你)?(?:先|再|重新)*(?:提供|上传|发送|分享|检查){_YU}{{0,8}}{_TU}{_YU}{{0,12}}(?:我|再|以便|后|谢谢|$|。)",
    rf"{_TU}(?:片|像)?(?:内容)?(?:无法|未能|不能)(?:加载|显示|查看|识别|访问|打开|描述)",
    rf"违反了?{_YU}{{0,8}}(?:内容|使用|社区|安全)(?:政策|准则|规范|规定)",
    rf"(?:如果|若)[您你](?:还有|有)(?:其他|任何|什么)(?:问题|需要|疑问)|希望(?:这|以上){_YU}{{0,10}}(?:帮助|帮到)[您你]",
    r"^(?:好的|当然|没问题)[，,！!。：:]?\s*(?:可以[，,。]?)?(?:以下|下面|这|我)",
    r"^(?:以下|下面)是[^。：:]{0,16}(?:描述|说明|标题)",
)
_IN_ENGLISH, _IN_CHINESE = (re.compile("|".join(f"(?:{one})" for one in said)) for said in (_ENGLISH, _CHINESE))


def plain(text: str) -> str:
    """`text` in small letters on one line, without what it quotes, and in simplified characters where patterns ask."""
    whole = _WHOLE.fullmatch(text.strip())
    told = whole["inside"] if whole else _QUOTED.sub(" ", text)
    return " ".join(told.replace("’", "'").lower().translate(_SIMPLE).split())


def refusal(told: str) -> str:
    """The words of a refusal in `told`, as `plain` returns it; "" if there is none."""
    found = _IN_ENGLISH.search(told) or (None if told.isascii() else _IN_CHINESE.search(told))
    return found[0] if found else ""
