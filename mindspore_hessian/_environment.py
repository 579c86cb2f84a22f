"""What is asked of the environment before MindSpore is imported: a numpy that it works with."""

from __future__ import annotations

import numpy

# MindSpore's wheels, 2.7.2 to 2.10, are built for numpy 1 and do not say so to pip. With numpy 2
# they can be imported, and a product of two Tensors is then "SystemError: ... returned a result
# with an exception set".
if int(numpy.__version__.split(".")[0]) >= 2:
    raise ImportError(
        f"mindspore_hessian cannot work with numpy {numpy.__version__}: MindSpore is built for "
        "numpy 1, and with numpy "
        '2 its Tensor operators end in a SystemError. Install numpy 1, and start Python anew: pip install "numpy<2"'
    )
