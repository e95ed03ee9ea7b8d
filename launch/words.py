"""A small vocabulary of picture captions, English and Chinese, for the tiny tokenizer to learn."""

_ENGLISH = """
a an the and or of in on at with without over under between behind beside near above below from to by for into through
is are was were be has have it its this that there one two three four five six seven eight nine ten many few several
photo photograph picture image painting drawing portrait landscape scene view close up background foreground center left
right top bottom corner side front back middle edge light dark bright soft warm cold sunny cloudy rainy snowy night day
morning evening sunset sunrise sky cloud sun moon star stars galaxy space rocket launch pad astronaut flag suit helmet
red orange yellow green blue purple violet pink brown black white gray grey gold golden silver beige teal navy colorful
man woman person people child boy girl face hair eyes hand smile crowd dog cat kitten puppy bird horse fish animal fur
whiskers flower flowers rose petal petals leaf leaves tree trees forest grass garden field mountain river lake sea ocean
beach sand stone stones rock rocks gravel wood wooden metal glass paper brick wall floor roof door window house building
temple palace pagoda tower bridge street road city town car bicycle motorcycle bus train boat plane wheel engine garage
cup coffee tea spoon saucer plate bowl table chair bed lamp book page text sign poster letter letters word words number
coin coins ancient old new young modern round square circle line lines pattern texture surface detail shadow reflection
small large big tiny huge tall short long wide narrow deep shallow high low empty full open closed clean dirty wet dry
standing sitting lying walking running flying swimming holding wearing looking showing reading writing displaying says
microscope tissue cell cells stained retina eye blood vessels medical brain slice astronomy hubble deep museum camera
tripod photographer clock motion blurred chess board checkered logo handwritten printed plain clean simple style
crop part portion wide vertical horizontal traditional chinese english sharp focus quality color size shape object
hello world good luck spring summer autumn winter happy birthday welcome open sale coffee shop library school station
"""

_CHINESE = """
图片 照片 图像 画面 背景 前景 中间 左边 右边 上面 下面 文字 写着 显示 红色 橙色 黄色 绿色 蓝色 紫色 粉色 棕色
黑色 白色 灰色 金色 银色 颜色 形状 大小 纹理 数量 空间 关系 一个 两个 三个 一只 一张 一幅 一朵 男人 女人 孩子
人物 宇航员 头盔 旗帜 猫 狗 鸟 马 鱼 动物 花 花朵 树木 森林 草地 花园 山 河流 湖泊 大海 海滩 沙子 石头 木头 金属
玻璃 纸张 砖墙 房屋 建筑 宫殿 寺庙 塔 桥 街道 城市 汽车 自行车 摩托车 飞机 火箭 发射 咖啡 茶 杯子 勺子 盘子 桌子
椅子 灯 书 页面 标志 海报 硬币 古代 现代 天空 云 太阳 月亮 星星 银河 宇宙 早晨 夜晚 日出 日落 春天 夏天 秋天
冬天 你好 世界 欢迎 生日快乐 恭喜 开放 学习 图书馆 学校 车站 商店 中文 英文 简单 干净 明亮 黑暗 温暖 寒冷 清晰
模糊 的 是 在 有 和 了 上 下 里 与
"""


def english() -> list[str]:
    """Each word as it stands inside a sentence, at its start, and after a quotation mark."""
    return [form for word in _ENGLISH.split() for form in (f" {word}", f" {word}", word, word.capitalize()) * 2]


def chinese() -> list[str]:
    """Each word by itself and between marks."""
    return [form for word in _CHINESE.split() for form in (word, f"“{word}”", f"，{word}。") * 2]
