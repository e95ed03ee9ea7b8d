"""Photographs that scikit-image and scikit-learn carry, and what parts of them show: the smoke corpus's contents.

Sources and licences are in those packages (skimage/data/README.txt and its documentation of `skimage.data`: public
domain or CC0 but for a few CC BY; sklearn/datasets/images/README.txt: CC BY 2.0).
"""

from typing import NamedTuple


class Crop(NamedTuple):
    """A box of a photograph in pixels from its top left corner, and a true sentence about what is in it."""

    left: int
    top: int
    width: int
    height: int
    shows: str


class Photograph(NamedTuple):
    """`whole` describes the full picture; `crops` are parts of it that are no near-duplicates of each other."""

    package: str
    file: str
    whole: str
    crops: tuple[Crop, ...]


_SKIMAGE, _SKLEARN = "skimage/data", "sklearn/datasets/images"

PHOTOGRAPHS = (
    Photograph(
        _SKIMAGE,
        "astronaut.png",
        "An astronaut in an orange space suit smiles at the camera, a flag and a space shuttle model behind her.",
        (
            Crop(90, 0, 260, 260, "The smiling face of an astronaut above the dark collar ring of her suit."),
            Crop(0, 160, 220, 330, "The sleeve of an orange space suit and a round mission patch beside a flag."),
            Crop(290, 0, 215, 322, "A white model of a space shuttle with its brown tank before a grey backdrop."),
            Crop(180, 297, 322, 215, "A black helmet with a white rim in front of an orange space suit."),
            Crop(30, 5, 450, 150, "The head of a smiling woman between a striped flag and a shuttle model."),
            Crop(0, 30, 150, 450, "A striped flag hangs behind the orange sleeve of a space suit."),
            Crop(60, 150, 345, 194, "The open collar ring and the orange shoulders of a space suit."),
            Crop(120, 200, 224, 300, "An orange space suit with a mission patch, a name tag and white straps."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "camera.png",
        "A black and white photograph of a man in a dark coat who films on a lawn with a camera on a tripod.",
        (
            Crop(130, 50, 260, 260, "A man holds his eye to the viewfinder of a camera, black and white."),
            Crop(215, 180, 220, 330, "A tripod stands on a lawn below gloved hands, black and white."),
            Crop(190, 100, 322, 215, "Hands at a camera; a tower and low buildings at the far end of a lawn."),
            Crop(0, 60, 150, 450, "The back of a man in a long dark coat, black and white."),
            Crop(60, 90, 450, 150, "A man looks through a camera, a skyline at the horizon, black and white."),
            Crop(0, 212, 224, 300, "The lower half of a man in a dark coat who leans forward on a lawn."),
            Crop(160, 317, 345, 194, "The spread legs of a tripod on grass, black and white."),
            Crop(318, 167, 194, 345, "An empty lawn below a skyline, one leg of a tripod at the side."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "chelsea.png",
        "The face of a tabby cat with green eyes, seen from close up.",
        (
            Crop(0, 30, 260, 260, "One green eye and the long white whiskers of a tabby cat."),
            Crop(190, 40, 260, 260, "The nose and one green eye of a tabby cat before a blurred background."),
            Crop(120, 0, 225, 300, "The face of a tabby cat from its forehead to its chin."),
            Crop(60, 20, 345, 194, "Both green eyes of a tabby cat look past the camera."),
            Crop(0, 60, 450, 150, "A wide strip with the green eyes of a tabby cat."),
            Crop(0, 150, 450, 150, "The orange nose and the white whiskers of a tabby cat."),
            Crop(226, 0, 225, 300, "Half of a tabby cat's face, with the tip of one pink ear above."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "coffee.png",
        "An espresso in a red and white cup on a red saucer with a small spoon, on a wooden table.",
        (
            Crop(150, 0, 270, 270, "A cup of espresso seen from above, white inside and red outside."),
            Crop(330, 130, 270, 270, "A silver spoon at the edge of a red saucer on a wooden table."),
            Crop(0, 100, 225, 300, "The left rim of a red saucer on a worn wooden table."),
            Crop(150, 20, 345, 194, "Brown espresso in a white cup, cut close."),
            Crop(75, 245, 450, 150, "The lower rim of a red saucer and the bowl of a spoon on wood."),
            Crop(185, 0, 266, 400, "A red cup of espresso on its saucer, with its handle in front."),
            Crop(370, 0, 225, 400, "A wooden table beside the right edge of a red saucer."),
            Crop(270, 0, 330, 220, "The handle of a spoon leans on a cup on a wooden table."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "rocket.jpg",
        "A white rocket stands on its launch pad at dusk between tall lattice towers, with bright lamps around it.",
        (
            Crop(190, 0, 284, 426, "A white rocket stands upright at dusk, with a mast at either side."),
            Crop(270, 110, 300, 300, "A white rocket at the left and a lightning mast before an evening sky."),
            Crop(90, 275, 450, 150, "Lamps shine like stars at the foot of a rocket."),
            Crop(100, 110, 345, 194, "The tip of a white rocket against a dark blue evening sky."),
            Crop(0, 60, 240, 360, "A lattice tower beside a launch pad, with bright lamps at its foot."),
            Crop(400, 0, 240, 360, "A tall lattice tower at the right and a thin mast in a dark blue sky."),
            Crop(300, 180, 320, 240, "Lamps and masts to the right of a launch pad at dusk."),
            Crop(95, 0, 450, 150, "A dark blue evening sky with the tip of a rocket and of a mast."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "hubble_deep_field.jpg",
        "Thousands of distant galaxies in white, orange and blue on black: the Hubble deep field.",
        (
            Crop(0, 0, 400, 400, "Distant galaxies on black, from the upper left of the Hubble deep field."),
            Crop(600, 0, 400, 400, "Distant galaxies on black, from the upper right of the Hubble deep field."),
            Crop(300, 240, 400, 400, "Scattered galaxies around the centre of the Hubble deep field."),
            Crop(0, 360, 320, 480, "Small galaxies on black, a tall part at the left of the Hubble deep field."),
            Crop(620, 400, 300, 450, "A bright blue star with rays among orange galaxies on black."),
            Crop(320, 580, 500, 280, "An orange galaxy among hundreds of faint ones in the lower Hubble deep field."),
            Crop(100, 100, 600, 200, "A wide strip of galaxies from the upper Hubble deep field."),
            Crop(350, 380, 640, 213, "A wide strip of galaxies with a bright blue star at the right."),
            Crop(450, 0, 160, 480, "A narrow column of galaxies on black."),
            Crop(660, 330, 340, 255, "A large orange galaxy and a blue star with rays on black."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "retina.jpg",
        "The back of a human eye: an orange disc on black with red vessels, the bright optic disc at the left.",
        (
            Crop(0, 400, 500, 500, "The bright optic disc of a retina, where red vessels branch off."),
            Crop(500, 450, 450, 450, "The dark macula in the middle of an orange retina."),
            Crop(300, 200, 900, 300, "A large red vessel curves across the upper part of a retina."),
            Crop(900, 400, 480, 720, "Fine vessels near the right rim of an orange retina on black."),
            Crop(0, 890, 780, 520, "The lower left rim of a retina on black, with curved vessels."),
            Crop(0, 0, 600, 800, "The upper left rim of a retina, vessels rising from the optic disc."),
            Crop(500, 940, 800, 450, "The lower part of a retina with branching vessels, black beyond its rim."),
            Crop(60, 300, 450, 800, "Vessels run up and down from the optic disc of a retina."),
            Crop(930, 0, 480, 480, "The upper right rim of a retina with its square notch, on black."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "moon.png",
        "A grey plain on the moon with one round crater and a few dark patches.",
        (
            Crop(0, 0, 260, 260, "A round crater on a grey plain of the moon."),
            Crop(250, 40, 260, 260, "A bright slope and a dark spot on a grey plain of the moon."),
            Crop(130, 200, 212, 312, "A row of dark patches on the surface of the moon."),
            Crop(180, 297, 322, 215, "A dark hollow in a grey plain of the moon."),
            Crop(20, 60, 450, 150, "A crater at the left and a bright slope at the right on the moon."),
            Crop(330, 60, 150, 450, "A nearly empty grey plain of the moon."),
            Crop(0, 180, 224, 300, "Small bumps on a smooth grey plain of the moon."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "ihc.png",
        "Glands of the colon under a microscope, their cells stained brown and the tissue between them blue.",
        (
            Crop(0, 0, 270, 260, "Brown stained cells of a gland under a microscope."),
            Crop(260, 0, 250, 300, "A rounded brown gland with a pale gap inside, under a microscope."),
            Crop(220, 240, 275, 270, "A small round brown gland in blue stained tissue, below larger ones."),
            Crop(0, 160, 200, 350, "The edge of a brown stained gland at the left of pale tissue."),
            Crop(60, 190, 345, 194, "Blue stained nuclei in the tissue between brown glands."),
            Crop(30, 0, 450, 150, "The tops of two brown stained glands side by side."),
            Crop(362, 30, 150, 450, "Pale tissue with blue nuclei beside the rim of a brown gland."),
            Crop(110, 190, 215, 322, "Tissue with blue nuclei, brown glands to the left and right."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "brick.png",
        "A pavement of long grey bricks laid in columns, in black and white.",
        (
            Crop(0, 0, 260, 260, "Long grey bricks in columns, black and white."),
            Crop(240, 20, 215, 322, "A tall part of a pavement of grey bricks, black and white."),
            Crop(20, 315, 345, 194, "The lower end of a pavement of narrow grey bricks."),
            Crop(200, 200, 300, 300, "Grey bricks with pale joints, black and white."),
            Crop(30, 120, 450, 150, "A wide strip of upright grey bricks, black and white."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "grass.png",
        "Dense blades of grass seen from above, in black and white.",
        (
            Crop(0, 0, 260, 260, "Blades of grass from above, black and white."),
            Crop(250, 10, 215, 322, "A tall part of a meadow from above, black and white."),
            Crop(10, 300, 345, 194, "Tangled grass and small leaves, black and white."),
            Crop(230, 240, 272, 272, "A close view of dense grass, black and white."),
            Crop(20, 180, 450, 150, "A wide strip of grass from above, black and white."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "gravel.png",
        "Grey gravel seen from above, in black and white.",
        (
            Crop(0, 0, 260, 260, "Small grey stones from above, black and white."),
            Crop(260, 0, 215, 322, "A tall part of a gravel path, black and white."),
            Crop(0, 310, 345, 194, "Loose gravel in even light, black and white."),
            Crop(230, 230, 280, 280, "Angular grey pebbles lie close together, black and white."),
            Crop(40, 170, 450, 150, "A wide strip of grey gravel, black and white."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "coins.png",
        "Four rows of ancient coins on a dark ground, in black and white.",
        (
            Crop(0, 0, 288, 228, "Ancient coins in three rows on a dark ground, black and white."),
            Crop(118, 43, 266, 260, "Old coins of several sizes at the lower right of a dark board."),
            Crop(0, 103, 356, 200, "The lower rows of ancient coins on a dark ground, black and white."),
            Crop(160, 0, 224, 303, "Ancient coins, the largest at the right, black and white."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "cell.png",
        "A single bright round cell on a dark grey ground under a microscope.",
        (
            Crop(250, 200, 290, 290, "A bright round cell under a microscope, seen large."),
            Crop(20, 340, 500, 280, "A bright round cell at the upper right of a dark grey ground."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "motorcycle_left.png",
        "A red motorcycle stands in a garage before a wooden bench and shelves with boxes.",
        (
            Crop(485, 235, 256, 262, "The front wheel and the red mudguard of a motorcycle on a concrete floor."),
            Crop(100, 170, 300, 250, "The rear wheel, the black seat and the exhaust of a red motorcycle."),
            Crop(300, 130, 300, 300, "The tank, the engine and the headlight of a red motorcycle."),
            Crop(340, 0, 400, 225, "Shelves with cardboard boxes above the handlebar of a red motorcycle."),
            Crop(0, 0, 300, 400, "A wooden bench and the rear of a red motorcycle in a garage."),
            Crop(0, 120, 735, 245, "A red motorcycle from its tail light to its headlight, cut wide."),
            Crop(480, 60, 220, 400, "The fork, the headlight and the front wheel of a red motorcycle."),
            Crop(180, 0, 160, 480, "A narrow view of a motorcycle's black seat before a garage wall."),
        ),
    ),
    Photograph(
        _SKIMAGE,
        "motorcycle_right.png",
        "A red motorcycle on its stand in a garage with a wooden bench, seen from a little further right.",
        (
            Crop(60, 250, 560, 250, "The lower half of a red motorcycle: both wheels and the chrome exhaust."),
            Crop(330, 0, 260, 260, "Shelves with tools and boxes behind the handlebar of a red motorcycle."),
            Crop(60, 60, 280, 373, "A black seat and a rear wheel of a motorcycle before a wooden bench."),
            Crop(200, 180, 324, 216, "The engine of a red motorcycle, close."),
        ),
    ),
    Photograph(
        _SKLEARN,
        "china.jpg",
        "A red pagoda with green and orange roofs rises over trees, a wide lake behind it.",
        (
            Crop(60, 20, 310, 310, "The upper floors of a red pagoda with green and orange roofs."),
            Crop(330, 150, 300, 270, "Trees before a wide lake with small boats in the haze."),
            Crop(90, 10, 270, 405, "A red pagoda of four floors between trees."),
            Crop(0, 204, 330, 222, "The lower roofs of a pagoda behind green bushes."),
            Crop(60, 20, 540, 180, "The top of a pagoda at the left of a pale blue sky."),
            Crop(420, 0, 220, 390, "A tree at the right rim of a hazy lake below a pale sky."),
            Crop(0, 110, 224, 300, "The left side of a red pagoda above trees."),
            Crop(180, 215, 450, 150, "The balconies of a pagoda beside a lake and a row of bushes."),
        ),
    ),
    Photograph(
        _SKLEARN,
        "flower.jpg",
        "An orange dahlia in full bloom before dark green leaves, a second flower below it.",
        (
            Crop(150, 70, 310, 310, "An orange dahlia in full bloom, its petals in rings."),
            Crop(0, 20, 330, 220, "Dark leaves beside the upper left petals of an orange dahlia."),
            Crop(290, 30, 220, 330, "The right half of an orange dahlia before dark green leaves."),
            Crop(140, 0, 240, 427, "An orange dahlia above a second one that is cut by the edge."),
            Crop(60, 250, 510, 170, "The lower petals of a dahlia and the top of a second flower."),
            Crop(230, 160, 260, 260, "The heart of an orange dahlia and the flower below it."),
            Crop(20, 100, 224, 300, "Dark green leaves at the left of an orange dahlia."),
            Crop(295, 100, 345, 194, "An orange dahlia at the left, dark leaves out of focus at the right."),
        ),
    ),
    Photograph(_SKIMAGE, "page.png", "A photographed page of print under the title Region-based segmentation.", ()),
    Photograph(_SKIMAGE, "text.png", "Handwritten formulas on paper, photographed at a slant.", ()),
)
