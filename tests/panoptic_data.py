"""The tiny dataset with panoptic ground truth, in COCO's layout."""

import json
from pathlib import Path

import cv2
import numpy as np
import tiny

THINGS, STUFF = tiny.CLASSES, ('wall', 'floor')


def make_panoptic(coco, root):
    """The tiny dataset with every pixel in a segment: objects before wall and floor."""
    content = json.loads((coco / 'annotations.json').read_text())
    folder = root / 'panoptic'
    folder.mkdir(parents=True)
    annotations = []
    for image in content['images']:
        height, width = image['height'], image['width']
        ids = np.full((height, width), 1, np.int64)
        ids[height // 2 :] = 2
        segments = [dict(id=1, category_id=4), dict(id=2, category_id=5)]
        for obj in content['annotations']:
            if obj['image_id'] == image['id']:
                x, y, w, h = obj['bbox']
                number = 300 + obj['id']  # needs two of the three colours
                ids[y : y + h, x : x + w] = number
                segments.append(dict(id=number, category_id=obj['category_id']))
        for segment in segments:
            ys, xs = np.nonzero(ids == segment['id'])
            x, y = int(xs.min()), int(ys.min())
            box = [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]
            segment.update(bbox=box, area=len(xs), iscrowd=0)
        blue_green_red = np.stack([ids // 65536, ids // 256 % 256, ids % 256], -1)
        name = Path(image['file_name']).name
        cv2.imwrite(str(folder / name), blue_green_red.astype(np.uint8))
        annotations.append(
            dict(image_id=image['id'], file_name=name, segments_info=segments)
        )
    categories = [
        dict(id=i + 1, name=name, isthing=int(name in THINGS))
        for i, name in enumerate(THINGS + STUFF)
    ]
    (root / 'panoptic.json').write_text(
        json.dumps(dict(content, annotations=annotations, categories=categories))
    )
    return root
