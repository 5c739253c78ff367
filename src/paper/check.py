"""Evaluate the weights that come with the project again, in each of their formats, against the accuracy of their cards.

`pretrained.ALLOWED` is the share of the images that may differ.
"""

from .. import pretrained
from ..errors import UserError

BATCH_SIZE = 100


def check(data_path: str) -> int:
    """Print a line for each file, and return how many do not have the accuracy of the manifest.

    An entry whose data set is not there is skipped with a sentence.

    Args:
        data_path: folder of the data sets.

    Raises:
        UserError: a data set or a file of weights is damaged; later entries are not evaluated then.
    """
    from ..data.dataset import SOURCES, open_dataset
    from ..deploy import load_model
    from ..training.evaluation import evaluate_function

    wrong = 0
    for name, entry in pretrained.read_manifest().items():
        try:
            SOURCES[entry.dataset].find(data_path, ("test",), download=False)
        except UserError as error:
            print(f"{name}: skipped, because its test set is not there: {error}")
            continue
        data = open_dataset(entry.dataset, path=data_path, batch_size=BATCH_SIZE, augment=False, splits=("test",))
        reference = f"{pretrained.PREFIX}{name}"
        for file in dict.fromkeys((pretrained.resolve(reference), pretrained.resolve_model(reference))):
            found = evaluate_function(load_model(file).logits, data.test(), data.num_classes)
            images = round((found.top1 - entry.accuracy) * found.images)
            right = abs(images) <= pretrained.ALLOWED * found.images
            wrong += not right
            told = "as stated" if images == 0 else f"{images:+d} images" + ("" if right else ": NOT as stated")
            print(f"{file.name}: top-1 {found.top1:.2%} of {found.images} images, card {entry.accuracy:.2%}, {told}")
    return wrong
