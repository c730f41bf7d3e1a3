"""Data sets with a fault in the YAML file that describes them, and those whose unusual YAML is taken."""

from __future__ import annotations

from pathlib import Path

from data_set_writer import CASES, TRAINS, fault, image_path, list_files, write_data_yaml


def write_yaml_text(root: Path, text: str | bytes) -> None:
    """Write text in place of the set's YAML."""
    file = root / "data.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)


YAMLS = {
    "names_missing": (dict(names=None), "names"),
    "names_missing_with_nc": (dict(names=None, nc=2), TRAINS),
    "names_empty": (dict(names=[]), "names"),
    "names_empty_mapping": (dict(names={}), "names"),
    "names_a_word": (dict(names="cat"), "names"),
    "names_a_number": (dict(names=2), "names"),
    "nc_another": (dict(nc=3), "names"),
    "nc_zero": (dict(nc=0, names=None), "nc"),
    "nc_negative": (dict(nc=-1, names=None), "nc"),
    "nc_a_word": (dict(nc="two", names=None), "nc"),
    "nc_huge": (dict(nc=10**9, names=None), "nc"),
    "nc_infinite": (dict(nc=float("inf"), names=None), "nc"),
    "names_with_a_gap": (dict(names={0: "a", 2: "b"}), "names"),
    "names_from_one": (dict(names={1: "a", 2: "b"}), "names"),
    "names_negative": (dict(names={-1: "a", 0: "b"}), "names"),
    "names_of_words": (dict(names={"a": 0, "b": 1}), "names"),
    "names_of_numbers": (dict(names=[1, 2.5]), TRAINS),
    "names_of_nothing": (dict(names=[None, True]), TRAINS),
    "names_of_lists": (dict(names=[["a"], {"b": 1}]), TRAINS),
    "names_twice_the_same": (dict(names=["a", "a"]), TRAINS),
    "names_like_imagenet": (dict(names=["n01440764", "n01443537"]), TRAINS),
    "names_with_newlines": (dict(names=["a\nb", "%s {x} \x1b[31m"]), TRAINS),
    "names_1000_in_a_list": (dict(names=[f"c{i}" for i in range(1000)]), TRAINS),
    "names_1000_in_a_mapping": (dict(names={i: f"c{i}" for i in range(1000)}), TRAINS),
    "train_missing": (dict(train=None), "train"),
    "val_missing": (dict(val=None), "val"),
    "train_elsewhere": (dict(train="images/none"), "images/none"),
    "val_elsewhere": (dict(val="images/none"), "images/none"),
    "train_a_number": (dict(train=3), "train"),
    "train_a_list_of_numbers": (dict(train=[3]), "train"),
    "train_an_empty_list": (dict(train=[]), "train"),
    "train_an_empty_string": (dict(train=""), "train"),
    "train_a_url": (dict(train="https://example.invalid/train.zip"), "train"),
    "path_elsewhere": (dict(path="/none"), "/none"),
    "path_a_list": (dict(path=["a"]), "path"),
    "path_a_url": (dict(path="https://example.invalid/data"), "example.invalid"),
    "channels_a_word": (dict(channels="three"), "channels"),
    "channels_negative": (dict(channels=-1), "channels"),
    "channels_zero": (dict(channels=0), "channels"),
    "channels_1": (dict(channels=1), TRAINS),
    "download_a_number": (dict(path="/none", download=3), "download"),
    "kpt_shape_of_words": (dict(kpt_shape=["a", "b"]), "kpt_shape"),
    "kpt_shape_of_one": (dict(kpt_shape=[1]), "kpt_shape"),
    "kpt_shape_negative": (dict(kpt_shape=[-1, 5]), "kpt_shape"),
    "nc_true": (dict(names=None, nc=True), "nc"),
    "a_val_of_null": (dict(val=None, validation="images/val"), TRAINS),
    "test_elsewhere": (dict(test="images/none"), TRAINS),
}
for _name, (_values, _outcome) in YAMLS.items():
    CASES[f"yaml_{_name}"] = (lambda root, values=_values: write_data_yaml(root, **values) and None), _outcome, ""


@fault(TRAINS)
def yaml_one_class(root):
    write_data_yaml(root, names=["a"])
    for split in ("train", "val"):
        for file in list_files(root, split, "labels"):
            file.write_text("0 0.5 0.5 0.5 0.5\n")


@fault("train")
def yaml_path_is_a_file(root):
    write_data_yaml(root, path=str(image_path(root)))


@fault("train")
def yaml_train_is_an_image(root):
    write_data_yaml(root, train="images/train/0.jpg")


@fault(TRAINS, "{}/images/train/none.jpg: ignoring corrupt image/label: ")
def yaml_train_is_a_list_of_files(root):
    (root / "train.txt").write_text("".join(f"./images/train/{i}.jpg\n" for i in (0, 1, 2, "none")))
    write_data_yaml(root, train="train.txt")


@fault("train")
def yaml_train_is_an_empty_file(root):
    (root / "train.txt").write_text("")
    write_data_yaml(root, train="train.txt")


@fault("data.yaml")
def yaml_of_nothing(root):
    write_yaml_text(root, "")


@fault("data.yaml")
def yaml_a_list(root):
    write_yaml_text(root, "- a\n- b\n")


@fault("data.yaml")
def yaml_a_word(root):
    write_yaml_text(root, "hello")


@fault("data.yaml")
def yaml_of_tabs(root):
    write_yaml_text(root, "train:\timages/train\n\tval: images/val\n")


@fault("data.yaml")
def yaml_cut_short(root):
    write_yaml_text(root, 'train: "images')


@fault("data.yaml")
def yaml_of_bytes(root):
    write_yaml_text(root, bytes(range(256)))


@fault("data.yaml")
def yaml_of_tags(root):
    write_yaml_text(root, "train: !!python/object/apply:os.system [id]\nval: x\nnames: [a]\n")


@fault(TRAINS)
def yaml_with_crlf_and_bom(root):
    write_yaml_text(root, b"\xef\xbb\xbf" + (root / "data.yaml").read_bytes().replace(b"\n", b"\r\n"))


@fault("none.yaml")
def yaml_missing(root):
    return root / "none.yaml"


@fault("data.yaml")
def yaml_that_is_a_folder(root):
    (root / "data.yaml").unlink()
    (root / "data.yaml").mkdir()


@fault(TRAINS)
def data_is_the_folder(root):
    return root


@fault("YAML")
def data_is_a_folder_without_yaml(root):
    return root / "images"


@fault("0.jpg")
def data_is_an_image(root):
    return image_path(root)
