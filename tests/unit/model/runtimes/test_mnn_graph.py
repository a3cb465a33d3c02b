"""Every kind of network as a model of MNN's: the same answers as PyTorch's."""

import numpy as np
import pytest
import torch

from app.backends.mnn_network import mnn
from model.runtimes.mnn_graph import mnn_model
from tests.unit.model.runtimes.networks import NETWORKS, described, network


def answers(described, side, images, folder):
    with (folder / "weights").open("wb") as weights:
        (folder / "model.mnn").write_bytes(mnn_model(*described, side, weights))
    interpreter = mnn().Interpreter(str(folder / "model.mnn"))
    interpreter.setExternalFile(str(folder / "weights"))
    session = interpreter.createSession({"backend": "CPU", "numThread": 2})
    inputs = interpreter.getSessionInput(session)
    interpreter.resizeTensor(inputs, images.shape)
    interpreter.resizeSession(session)
    inputs.copyFrom(mnn().Tensor(images.shape, mnn().Halide_Type_Float, images, mnn().Tensor_DimensionType_Caffe))
    assert interpreter.runSession(session) == 0
    shape = interpreter.getSessionOutput(session).getShape()
    logits = np.zeros(shape, np.float32)
    tensor = mnn().Tensor(shape, mnn().Halide_Type_Float, logits, mnn().Tensor_DimensionType_Caffe)
    interpreter.getSessionOutput(session).copyToHostTensor(tensor)
    return np.array(tensor.getNumpyData())


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_answers_are_what_pytorch_computes(options, side, tmp_path):
    net = network(**options)
    images = np.random.default_rng(0).normal(size=(3, 3, side, side)).astype(np.float32)
    with torch.inference_mode():
        wanted = net(torch.from_numpy(images)).numpy()
    found = answers(described(net), side, images, tmp_path)
    assert found.shape == (3, 7, 1, 1)
    np.testing.assert_allclose(found.reshape(3, 7), wanted, rtol=1e-3, atol=1e-3)
