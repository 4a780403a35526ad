"""Small archives in the published byte formats, and the facts the code must be told to accept them."""

import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from datadiet.data import download
from datadiet.data.sources import cinic10, published, tfds_folder

CIFAR10_NAMES = cinic10.CLASSES
FILES = {
    "cifar10": ("cifar-10-batches-bin/", [f"data_batch_{k}.bin" for k in range(1, 6)], "test_batch.bin", 1),
    "cifar100": ("cifar-100-binary/", ["train.bin"], "test.bin", 2),
}


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def cifar_rows(count, num_classes, label_bytes, seed, cheap=False):
    """uint8 [count, label bytes + 3072]; cheap: images of one colour, quick to compress."""
    random = np.random.RandomState(seed)
    rows = np.empty((count, label_bytes + 3072), np.uint8)
    rows[:, label_bytes - 1] = np.arange(count) % num_classes
    if label_bytes == 2:
        rows[:, 0] = rows[:, 1] // 5
    rows[:, label_bytes:] = random.randint(0, 256, (count, 1 if cheap else 3072))
    return rows


def write_cifar(name, path, counts, cheap=False):
    """An archive like cifar-10-binary.tar.gz or cifar-100-binary.tar.gz; returns train and test rows."""
    prefix, train_files, test_file, label_bytes = FILES[name]
    num_classes = 10 if name == "cifar10" else 100
    train, test = (cifar_rows(count, num_classes, label_bytes, seed, cheap) for seed, count in enumerate(counts))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        if name == "cifar10":
            add(tar, f"{prefix}batches.meta.txt", ("\n".join(CIFAR10_NAMES) + "\n\n").encode())
        else:
            add(tar, f"{prefix}fine_label_names.txt", "".join(f"fine{i}\n" for i in range(100)).encode())
            add(tar, f"{prefix}coarse_label_names.txt", "".join(f"coarse{i}\n" for i in range(20)).encode())
        for file, rows in zip(train_files, np.array_split(train, len(train_files))):
            add(tar, prefix + file, rows.tobytes())
        add(tar, prefix + test_file, test.tobytes())
    return train, test


def pixels(rows, label_bytes=1):
    return rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def idx_bytes(array):
    """The idx format: magic number, shape, bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, arrays, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), 1))


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def cinic_images(per_class, seed=0):
    """PNG bytes by path; the first of each class is greyscale, as some of CINIC-10 are."""
    random = np.random.RandomState(seed)

    def image(i):
        return png(random.randint(0, 256, (32, 32) if i == 0 else (32, 32, 3)).astype(np.uint8))

    return {
        f"{split}/{label}/n{i:04d}.png": image(i)
        for split in ("valid", "train", "test")
        for label in cinic10.CLASSES
        for i in range(per_class)
    }


def write_npz(path, seed):
    """Small images of four classes."""
    random = np.random.RandomState(seed)
    x = random.randint(0, 256, (30, 6, 5, 3)).astype(np.uint8)
    np.savez(path, x_train=x[:20], y_train=np.arange(20) % 4, x_test=x[20:], y_test=np.arange(10) % 4)
    return path


def write_pictures(root, paths, seed=0, size=(8, 8)):
    """Files of images in a folder, each of pixels of its own; a format by suffix, PNG where that tells none."""
    random = np.random.RandomState(seed)
    for path in paths:
        file = Path(os.fsdecode(os.path.join(os.fsencode(root), os.fsencode(path))))
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP"}.get(file.suffix, "PNG")
        Image.fromarray(random.randint(0, 256, (*size, 3)).astype(np.uint8)).save(file, kind)
    return root


def accept(monkeypatch, name, path, counts=None):
    """Tell the code that the archive at `path` is the published one, and how many examples it has."""
    archives = []
    paths = path if isinstance(path, list) else [path]
    for archive, file in zip(download.ARCHIVES[name], paths, strict=True):
        digest = hashlib.new(archive.algorithm, file.read_bytes()).hexdigest()
        archives.append(archive._replace(size=file.stat().st_size, digest=digest))
    monkeypatch.setitem(download.ARCHIVES, name, tuple(archives))
    if counts:
        monkeypatch.setitem(tfds_folder.COUNTS, name, counts)


def accept_content(monkeypatch, name, arrays):
    """Tell the code that these arrays are the published ones."""
    monkeypatch.setitem(published.CONTENTS, name, tuple(hashlib.sha256(idx_bytes(a)).hexdigest() for a in arrays))


class Plain:
    """pytest's monkeypatch for a child process, which never undoes anything."""

    @staticmethod
    def setitem(mapping, key, value):
        mapping[key] = value


def python(code, *arguments, cache):
    """Start a child that runs `code` with this folder on its path."""
    environment = {
        **os.environ,
        "DATADIET_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def flip(path, position):
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))
