"""The portable graph: one stochastic pass that any engine computes as it is, without ours around it.

Each Dropout is written as what it means: uniform random numbers, and what they leave. Engines delete Dropout nodes or
refuse them in training mode; these they run. The weights stay in the file that the literal graph has them in. Knows
onnx and numpy; no engine.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, inliner

from contract.graph.builder import GraphBuilder
from contract.graph.dropouts import constants, drop_probability, is_active

_MOST_SEED = 1 << 20


def make_portable(literal: ModelProto) -> ModelProto:
    """Return a graph of the literal one's input and output, which draws what it drops anew in every run.

    `literal` may be loaded without its weights; it is not changed.
    """
    portable = inliner.inline_local_functions(literal) if literal.functions else literal
    known = constants(portable)
    builder, sites = GraphBuilder(), 0
    for node in portable.graph.node:
        if is_active(node, known):
            _drop(builder, node, probability=drop_probability(node, known), site=sites)
            sites += 1
        else:
            builder.nodes.append(node)
    return builder.assemble(portable, portable.graph.input, portable.graph.output)


def _drop(builder: GraphBuilder, node: NodeProto, *, probability: float, site: int) -> None:
    """Keep the values whose random numbers, in [0, 1), are not below the probability of dropping, and scale them up.

    The seeds are each site's own: without one, OpenVINO's numbers are of three digits and made of the time, and the
    variance over the passes is wrong by a tenth.
    """
    seed = float(np.random.default_rng(site).integers(1, _MOST_SEED))
    numbers = builder.add("RandomUniformLike", [node.input[0]], dtype=TensorProto.FLOAT, seed=seed)
    stays = builder.add("GreaterOrEqual", [numbers, builder.constant(np.array(probability, np.float32))])
    ones = builder.add("Cast", [stays], to=TensorProto.FLOAT)
    left = builder.add("Mul", [node.input[0], ones])
    builder.add("Div", [left, builder.constant(np.array(1 - probability, np.float32))], node.output[0])
