"""Data sets with a fault in a label file, and those whose unusual labels are taken."""

from __future__ import annotations

from data_set_writer import CASES, TRAINS, fault, list_files, write_label

LABELS = {  # that are taken
    "columns_of_a_segment": "0 0.1 0.1 0.5 0.1 0.5 0.5",
    "mixed_columns": "0 0.5 0.5 0.5 0.5\n0 0.1 0.1 0.5 0.1 0.5 0.5",
    "width_zero": "0 0.5 0.5 0 0.5",
    "box_outside": "0 1.0 1.0 1.0 1.0",
    "box_tiny": "0 0.5 0.5 1e-30 1e-30",
    "empty": "",
    "blank_lines": "\n\n   \n",
    "bom_and_crlf": "\ufeff0 0.5 0.5 0.5 0.5\r\n1 0.5 0.5 0.2 0.2\r\n",
    "same_row_twice": "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5",
    "underscores": "0 0.5_5 0.5 0.5 0.5",
    "thousand_boxes": "\n".join(f"0 0.5 0.5 {i / 1000} 0.5" for i in range(1, 1001)),
}
WRONG = {  # whose image is left out; the last row is the wrong one
    "words": "a cat",
    "a_word_for_a_number": "0 x 0.5 0.5 0.5",
    "too_few_columns": "0 0.5 0.5 0.5",
    "too_many_columns": "0 0.5 0.5 0.5 0.5 0.9",
    "an_odd_segment": "0 0.1 0.1 0.5 0.1 0.5 0.5 0.7",
    "mixed_and_beyond": "0 0.1 0.1 0.5 0.1 0.5 0.5\n0 1.5 0.5 0.5 0.5",
    "ragged_rows": "0 0.5 0.5 0.5 0.5\n0 0.5",
    "negative_class": "-1 0.5 0.5 0.5 0.5",
    "class_out_of_range": "2 0.5 0.5 0.5 0.5",
    "class_of_a_fraction": "0.5 0.5 0.5 0.5 0.5",
    "class_beyond_integers": "1e30 0.5 0.5 0.5 0.5",
    "class_nan": "nan 0.5 0.5 0.5 0.5",
    "coordinate_above_1": "0 1.5 0.5 0.5 0.5",
    "coordinates_in_pixels": "0 32 32 16 16",
    "negative_coordinate": "0 -0.5 0.5 0.5 0.5",
    "negative_width": "0 0.5 0.5 -0.005 0.5",
    "nan": "0 nan 0.5 0.5 0.5",
    "inf": "0 inf 0.5 0.5 0.5",
    "minus_inf": "0 -inf 0.5 0.5 0.5",
    "infinite_after_rounding": "0 1e309 0.5 0.5 0.5",
    "no_text": "\0\1\2\3",
    "commas": "0,0.5,0.5,0.5,0.5",
}
for _name, _text in LABELS.items():
    CASES[f"labels_{_name}"] = (lambda root, text=_text: write_label(root, text)), TRAINS, ""
for _name, _text in WRONG.items():
    _line = f"0.jpg: ignoring corrupt image/label: {{}}/labels/train/0.txt, row {_text.count(chr(10)) + 1}: "
    CASES[f"labels_{_name}"] = (lambda root, text=_text: write_label(root, text)), TRAINS, _line


@fault(TRAINS, "{}/labels/train/0.txt is no text in UTF-8")
def labels_in_utf16(root):
    (root / "labels" / "train" / "0.txt").write_bytes("0 0.5 0.5 0.5 0.5".encode("utf-16"))


@fault(TRAINS)
def labels_missing_for_one(root):
    (root / "labels" / "train" / "0.txt").unlink()


@fault("train")
def labels_missing(root):
    for file in list_files(root, kind="labels"):
        file.unlink()


@fault(TRAINS)
def val_labels_missing(root):
    for file in list_files(root, "val", "labels"):
        file.unlink()


@fault(TRAINS)
def val_labels_empty(root):
    for file in list_files(root, "val", "labels"):
        file.write_text("")


@fault(TRAINS)
def label_that_is_a_folder(root):
    (root / "labels" / "train" / "0.txt").unlink()
    (root / "labels" / "train" / "0.txt").mkdir()


@fault(TRAINS)
def a_batch_without_objects(root):
    for name in ("0.txt", "1.txt", "2.txt"):
        write_label(root, "", name)


@fault(TRAINS)
def one_image(root):
    for file in list_files(root)[1:]:
        file.unlink()
