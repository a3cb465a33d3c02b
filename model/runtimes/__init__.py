"""A network as what serves computes it: in torch with batch norm folded, in OpenVINO or MNN without torch."""
