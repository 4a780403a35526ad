"""dd.dataset_from: what a program has in memory becomes a dataset, as the same data in a file would."""

import io

import numpy as np
import pytest
from archives import png
from PIL import ExifTags, Image
from test_project import PACKAGE, imported

import datadiet as dd
from datadiet.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def pair(count, shape=(6, 5, 3), classes=4, seed=0):
    images = np.random.RandomState(seed).randint(0, 256, (count, *shape)).astype(np.uint8)
    return images, np.arange(count) % classes


TRAIN, TEST = pair(20), pair(8, seed=1)


class Items:
    """A torch.utils.data.Dataset by what it can do."""

    def __init__(self, images, labels, classes=None):
        self.images, self.labels = images, labels
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


class Part:
    """A torch.utils.data.Subset."""

    def __init__(self, dataset, ids):
        self.dataset, self.ids = dataset, ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return self.dataset[self.ids[i]]


class Tensor:
    """A tensor by what it can do, on a device and with gradients."""

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self

    def cpu(self):
        return self.values


def pillow(images):
    return [Image.fromarray(image) for image in images]


def test_arrays_are_the_same_data_as_in_an_npz_file(tmp_path):
    np.savez(tmp_path / "mine.npz", x_train=TRAIN[0], y_train=TRAIN[1], x_test=TEST[0], y_test=TEST[1])
    known, dataset = dd.load_dataset(f"npz:{tmp_path / 'mine.npz'}"), dd.dataset_from(TRAIN, TEST)
    assert dataset.fingerprint == known.fingerprint
    assert dataset.example_ids.tolist() == known.example_ids.tolist()
    assert np.array_equal(dataset.train_images, known.train_images)
    assert np.array_equal(dataset.test_labels, known.test_labels)
    assert np.array_equal(dataset.mean, known.mean)


@pytest.mark.parametrize(
    "form",
    [
        lambda images, labels: (images.tolist(), labels.tolist()),
        lambda images, labels: (Tensor(images), Tensor(labels)),
        lambda images, labels: (images, np.eye(4)[labels]),
        lambda images, labels: Items(images, labels),
        lambda images, labels: Items(pillow(images), labels),
        lambda images, labels: Items(list(map(Tensor, images)), list(map(Tensor, labels))),
        lambda images, labels: Part(Items(images, labels), [*range(len(labels))]),
        lambda images, labels: list(zip(images, labels.tolist())),
        lambda images, labels: [{"image": image, "label": label} for image, label in zip(pillow(images), labels)],
    ],
    ids=["lists", "tensors", "one-hot", "items", "pillow", "items of tensors", "subset", "list", "dictionaries"],
)
def test_every_form_gives_the_same_data(form):
    assert dd.dataset_from(form(*TRAIN), form(*TEST)).fingerprint == dd.dataset_from(TRAIN, TEST).fingerprint


def test_images_with_channels_first_from_0_to_1_are_the_same_data():
    def scaled(images, labels):
        return Items(np.moveaxis(images, 3, 1).astype(np.float32) / 255, labels)

    with pytest.warns(UserWarning) as said:  # noqa: PT030 - both are looked at below
        dataset = dd.dataset_from(scaled(*TRAIN), scaled(*TEST))
    assert dataset.fingerprint == dd.dataset_from(TRAIN, TEST).fingerprint
    told = " ".join(str(one.message) for one in said)
    assert "has its channels first; they are put last" in told
    assert "images from 0 to 1 are read as 0 to 255" in told


def test_pictures_are_upright_on_white_and_of_one_number_of_channels():
    def turned(pixels):
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
        return Image.open(buffer)

    grey, clear = np.full((5, 5), 7, np.uint8), np.zeros((5, 5, 4), np.uint8)
    left = np.zeros((5, 5, 3), np.uint8)
    left[:, :2] = 200
    given = [(Image.fromarray(grey), "a"), (Image.fromarray(clear), "b"), (turned(left), "a")]
    with pytest.warns(UserWarning) as said:  # noqa: PT030 - both are looked at below
        dataset = dd.dataset_from(given, given)
    assert any("3 test examples of 3 are training examples too" in note for note in dataset.notes)
    assert [str(one.message) for one in said] == list(dataset.notes)
    assert dataset.image_shape == (5, 5, 3)
    assert (dataset.train_images[0] == 7).all()
    assert (dataset.train_images[1] == 255).all()
    assert np.array_equal(dataset.train_images[2], np.rot90(left, -1))
    assert dataset.class_names == ("a", "b")


def test_names_of_classes_come_from_where_there_are_any():
    names = ["ant", "bee", "cat", "dog"]
    subset = Part(Items(*TRAIN, classes=names), [*range(20)])
    assert dd.dataset_from(subset, TEST).class_names == tuple(names)
    assert dd.dataset_from(TRAIN, TEST, class_names=names).class_names == tuple(names)
    words = TRAIN[0], np.array(names)[::-1][TRAIN[1]]
    assert dd.dataset_from(words, (TEST[0], np.array(names)[TEST[1]])).class_names == tuple(names)
    with pytest.raises(UserError, match="expected the same in the same order"):
        dd.dataset_from(Items(*TRAIN, classes=names), Items(*TEST, classes=names[::-1]))
    with pytest.raises(UserError, match="2 class names for 4 classes"):
        dd.dataset_from(TRAIN, TEST, class_names=names[:2])
    from_one = [(images, labels + 1) for images, labels in (TRAIN, TEST)]
    with pytest.warns(UserWarning, match="renumbered"):
        assert dd.dataset_from(*from_one, class_names=["none", *names]).class_names == tuple(names)


def test_ids_and_name_may_be_given():
    ids = [f"photo {i}" for i in range(20)]
    dataset = dd.dataset_from(TRAIN, TEST, ids=ids, name="photos")
    assert dataset.example_ids.tolist() == ids
    assert dataset.name == "photos"
    with pytest.raises(UserError, match="19 ids for 20 training examples"):
        dd.dataset_from(TRAIN, TEST, ids=ids[1:])
    with pytest.raises(UserError, match="the ids of the training examples repeat"):
        dd.dataset_from(TRAIN, TEST, ids=[*ids[1:], "photo 1"])


def test_pictures_of_several_sizes_are_resized_where_a_size_is_asked_for():
    drawn = np.random.RandomState(0).randint(0, 256, (8, 9, 9, 3)).astype(np.uint8)
    given = [(Image.fromarray(drawn[i, :6, : 4 + i % 4]), i % 2) for i in range(8)]
    with pytest.raises(UserError, match=r"(?s)images of 4 sizes.*4 x 6 pixels: 1 \(item 0\).*Add image_size=5\.$"):
        dd.dataset_from(given[:4], given[4:])
    with pytest.raises(UserError, match=r"images of 4 shapes, \[6, 4, 3\] \(the first: item 0\).*image_size"):
        dd.dataset_from(*([(np.asarray(image), label) for image, label in part] for part in (given[:4], given[4:])))
    assert dd.dataset_from(given[:4], given[4:], image_size=3).image_shape == (3, 3, 3)
    assert dd.dataset_from(TRAIN, TEST, image_size="3x4").image_shape == (3, 4, 3)


class Drawn(Items):
    def __getitem__(self, i):
        return np.roll(self.images[i], np.random.randint(1, 200)), self.labels[i]


class Flipped(Items):
    """Each look is another one in half of the cases: of the image, or of the label."""

    def __init__(self, what, seed):
        super().__init__(*TRAIN)
        self.what, self.random = what, np.random.RandomState(seed)

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        if self.random.rand() < 0.5:
            return image, label
        return (image[:, ::-1], label) if self.what == "image" else (image, 3 - label)


@pytest.mark.parametrize("what", ["image", "label"])
def test_transforms_by_chance_are_found_wherever_they_may_leave_three_images_alone(what):
    for seed in range(40):
        with pytest.raises(UserError, match=f"another {what} at every look"):
            dd.dataset_from(Flipped(what, seed), TEST)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Drawn(*TRAIN), "another image at every look; expected one without random transforms"),
        (Items((TRAIN[0] / 255 - 0.5) / 0.3, TRAIN[1]), "range from -1.6.*Normalised images are not"),
        (iter(()), "got tuple_iterator, which has no length or no items; expected .*datasets.Dataset"),
        ({"train": TRAIN}, "got splits or columns train; expected one split"),
        ([], "it is empty; expected examples"),
        ("digits", r"got str; expected .*Files are read by dd\.load_dataset"),
        (dd.dataset_from(TRAIN, TEST), r"got Dataset; expected"),
        ([(1, 2, 3)], r"item 0 is a tuple of 3; expected \(image, label\)"),
        ([{"picture": 1, "label": 2}], "item 0 is a dict of 2|a dict with picture, label"),
        ([TRAIN[0][0]], "item 0 is a ndarray"),
        ((TRAIN[0], TRAIN[1][:-1]), "20 train examples but 19 labels"),
        (([TRAIN[0][0], TRAIN[0][1][:2]], [0, 1]), "list cannot be read as one array"),
        ((TRAIN[0], [None] * 20), "labels are object"),
        (3, "got int, which has no length"),
    ],
)
def test_what_is_no_dataset_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        dd.dataset_from(given, TEST)


def test_such_a_dataset_is_scored_and_chosen_from():
    import jax

    from datadiet.data.batches import Normalizer

    dataset = dd.dataset_from(TRAIN, TEST)
    network = dd.build_model("mlp", dataset.num_classes, dataset.image_shape, width=4)
    images = np.asarray(Normalizer.of(dataset)(dataset.train_images))
    values = dd.compute_scores("l2_error", network, network.init(jax.random.key(0)), images, dataset.train_labels)
    assert values.shape == (20,)
    assert len(dd.select("keep_max", values, size=5, labels=dataset.train_labels)) == 5


def test_neither_library_is_imported():
    found = {name.split(".")[0] for name in imported(PACKAGE / "data" / "objects.py")}
    assert not {"torch", "torchvision", "datasets"} & found


# --- the real libraries ---------------------------------------------------------------------------


def test_torch_datasets():
    torch = pytest.importorskip("torch")
    data = torch.utils.data
    known = dd.dataset_from(TRAIN, TEST).fingerprint

    def tensors(images, labels):
        return data.TensorDataset(torch.tensor(np.moveaxis(images, 3, 1) / np.float32(255)), torch.tensor(labels))

    with pytest.warns(UserWarning, match="channels first"):
        dataset = dd.dataset_from(tensors(*TRAIN), data.Subset(tensors(*TEST), range(8)))
    assert dataset.fingerprint == known
    grown = torch.tensor(TRAIN[0].astype(np.float32), requires_grad=True)
    assert dd.dataset_from((grown, torch.tensor(TRAIN[1])), TEST).fingerprint == known

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(UserError, match="got Stream"):
        dd.dataset_from(Stream(), TEST)


def test_torchvision_datasets(tmp_path):
    vision = pytest.importorskip("torchvision")
    for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
        for i, (pixels, label) in enumerate(zip(images, labels)):
            path = tmp_path / split / "abcd"[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))
    train, test = (vision.datasets.ImageFolder(tmp_path / split) for split in ("train", "test"))
    dataset, known = dd.dataset_from(train, test), dd.load_dataset(f"folder:{tmp_path}")
    assert np.array_equal(dataset.train_images, known.train_images)
    assert np.array_equal(dataset.train_labels, known.train_labels)
    assert dataset.class_names == known.class_names == ("a", "b", "c", "d")
    flipped = vision.datasets.ImageFolder(tmp_path / "train", vision.transforms.RandomCrop(3))
    with pytest.raises(UserError, match="another image at every look"):
        dd.dataset_from(flipped, test)
    to_tensor = vision.transforms.ToTensor()
    as_tensors = [vision.datasets.ImageFolder(tmp_path / split, to_tensor) for split in ("train", "test")]
    with pytest.warns(UserWarning, match="channels first"):
        assert dd.dataset_from(*as_tensors).fingerprint == dataset.fingerprint


def test_hugging_face_datasets(tmp_path):
    hf = pytest.importorskip("datasets")

    def features(names):
        return hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names), "hour": hf.Value("int64")})

    def made(images, labels, names=("d", "c", "b", "a")):
        cells = {"image": pillow(images), "label": labels.tolist(), "hour": [3] * len(labels)}
        return hf.Dataset.from_dict(cells, features=features(list(names)))

    train, test = made(*TRAIN), made(*TEST)
    dataset = dd.dataset_from(train, test)
    assert dataset.fingerprint == dd.dataset_from(TRAIN, TEST).fingerprint
    assert dataset.class_names == ("d", "c", "b", "a")
    train.to_parquet(tmp_path / "train-0.parquet")
    test.to_parquet(tmp_path / "test-0.parquet")
    known = dd.load_dataset(f"parquet:{tmp_path}")
    assert np.array_equal(dataset.train_images, known.train_images)
    assert np.array_equal(dataset.train_labels, known.train_labels)
    order = [3, 1, 7, 2, 10, 0]
    assert np.array_equal(dd.dataset_from(train.select(order), test).train_images, TRAIN[0][order])
    assert dd.dataset_from(train.with_format("torch") if _there("torch") else train, test).num_examples == 20
    with pytest.raises(UserError, match="expected the same in the same order"):
        dd.dataset_from(train, made(*TEST, names=("a", "b", "c", "d")))
    with pytest.raises(UserError, match="got splits or columns train, test; expected one split"):
        dd.dataset_from(hf.DatasetDict({"train": train, "test": test}), test)
    lists = [hf.Dataset.from_dict({"x": images.tolist(), "label": labels.tolist()}) for images, labels in (TRAIN, TEST)]
    assert dd.dataset_from(*lists).fingerprint == dataset.fingerprint
    with pytest.raises(UserError, match="expected one image column"):
        dd.dataset_from(train.remove_columns("label"), test)


def _there(library):
    from importlib.util import find_spec

    return find_spec(library) is not None
