"""A number format from outside of the package: operands in IEEE half precision, sums in float32.

Half the bytes of weights and activations, on every CPU that converts vectors of half precision (F16C, since 2012). For
kernels that wait for memory; where arithmetic is the limit, the conversions cost more than they save.

    PYTHONPATH=. CALUMMA_EXTENSIONS=half calumma compile model.onnx -o model.so --precision fp16

in this folder, which PYTHONPATH has to name: the command does not look for modules in the current one.
"""

from calumma.core.contraction import Contraction, register_contraction

register_contraction(Contraction("fp16", read="float16", tolerance=1e-2))
