"""Data sets with one fault each, and the outcome that is expected: training, or an error of one line."""

import faulty_images  # noqa: F401 - each of the three adds its cases
import faulty_labels  # noqa: F401
import faulty_yamls  # noqa: F401
from data_set_writer import CASES, list_files, write_data_yaml, write_set

__all__ = ["CASES", "list_files", "write_data_yaml", "write_set"]
