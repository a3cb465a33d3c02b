"""Files of NumPy's format."""

import io

import numpy as np


def npy(array, version=None, allow_pickle=False):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), version, allow_pickle)
    return buffer.getvalue()
