"""Initialisation, encoding of observations, and network shapes."""

import re
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import dqn, ppo
from purerl.core import networks
from purerl.envs import Box, Discrete

KEY = jax.random.key(0)
SHAPES = {"tall": (64, 8), "wide": (8, 64), "square": (32, 32), "row": (1, 5), "one": (1, 1)}
draw = jax.jit(jax.vmap(networks.orthogonal, (0, None)))


def test_orthogonal():
    """W W^T = scale^2 I on the shorter side, each kernel with its own scale; what is no matrix stays as it is."""
    scales = {name: jnp.full(shape, 1.0 + len(name)) for name, shape in SHAPES.items()}
    drawn = draw(jax.random.split(KEY, 3), {**scales, "bias": jnp.arange(3.0)})
    np.testing.assert_array_equal(drawn["bias"], np.tile(np.arange(3.0), (3, 1)))
    for name, shape in SHAPES.items():
        for matrix in np.asarray(drawn[name], np.float64):
            assert matrix.shape == shape
            matrix = matrix.T if shape[0] > shape[1] else matrix
            np.testing.assert_allclose(matrix @ matrix.T / (1 + len(name)) ** 2, np.eye(len(matrix)), atol=1e-3)


def test_orthogonal_draws_differ():
    """From key to key, and between kernels of one shape."""
    drawn = draw(jax.random.split(KEY, 3), {"a": jnp.ones((32, 32)), "b": jnp.ones((32, 32))})
    assert np.abs(drawn["a"][0] - drawn["a"][1]).max() > 0.1
    assert np.abs(drawn["a"][0] - drawn["b"][0]).max() > 0.1


def test_orthogonal_draws_favour_no_direction():
    """Of 4 x 4 rotations, every entry has the mean 0 and the variance 1/4; 2,000 draws, 5 standard errors."""
    kernel = {"kernel": jnp.ones((4, 4))}
    keys = jax.random.split(KEY, 2_000)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: networks.orthogonal(key, kernel)))(keys)["kernel"])
    np.testing.assert_allclose(draws.mean(0), np.zeros((4, 4)), atol=5 * 0.5 / 2_000**0.5)
    np.testing.assert_allclose(draws.var(0), np.full((4, 4), 0.25), atol=0.03)


def test_encode():
    np.testing.assert_array_equal(networks.encode(jnp.array([2, 0]), Discrete(3)), [[0, 0, 1], [1, 0, 0]])
    pixels = networks.encode(jnp.array([[0, 51, 255]], jnp.uint8), Box(0, 255, (3,), jnp.uint8))
    np.testing.assert_allclose(pixels, [[0, 0.2, 1]], rtol=1e-6)
    bits = networks.encode(jnp.array([[True, False]]), Box(False, True, (2,), jnp.bool_))
    np.testing.assert_array_equal(bits, [[1, 0]])
    numbers = networks.encode(jnp.array([[-300.0, 2.5]]), Box(-jnp.inf, jnp.inf, (2,)))
    np.testing.assert_array_equal(numbers, [[-300, 2.5]])
    assert all(x.dtype == jnp.float32 for x in (pixels, bits, numbers))


def network(shape, *args, dtype=jnp.float32, **kwargs):
    return networks.make(None, Box(-1.0, 1.0, shape, dtype), *args, **kwargs)


def test_dense_network():
    """Every entry of the observation counts, whatever its axes; the head has its own scale; layer_norm adds norms."""
    dense = network((2, 5), 3, (16, 8), "tanh", head_scale=0.01)
    whole = jax.jit(lambda key: networks.init(key, dense))(KEY)[0]
    params = whole["params"]["body"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "Dense_0": (10, 16), "Dense_1": (16, 8), "Dense_2": (8, 3)
    }  # fmt: skip
    np.testing.assert_allclose(jnp.linalg.norm(params["Dense_2"]["kernel"], axis=0), 0.01 * np.ones(3), rtol=1e-3)
    np.testing.assert_allclose(jnp.linalg.norm(params["Dense_1"]["kernel"], axis=0), 2**0.5 * np.ones(8), rtol=1e-3)
    normed = network((2, 5), 3, (16, 8), "tanh", layer_norm=True)
    layers = jax.eval_shape(normed.init, KEY, jnp.zeros((2, 5)))["params"]["body"]
    assert {"LayerNorm_0", "LayerNorm_1"} <= layers.keys()


def test_small_products_are_sums():
    """Products of a linear policy and their gradients are those of numpy, for any batch and a kernel for each."""
    random = np.random.default_rng(0)
    x, kernels, wanted = (random.normal(size=size) for size in ((3, 5, 4), (3, 4, 2), (3, 5, 2)))
    layers = networks.Layers((), "tanh", 2, by_sums=True)

    def loss(kernel, x, wanted):
        out = layers.apply({"params": {"Dense_0": {"kernel": kernel, "bias": jnp.array([1.0, -2.0])}}}, x)
        return ((out - wanted) ** 2).sum() / 2, out

    given = [jnp.asarray(x, jnp.float32) for x in (kernels, x, wanted)]
    grads, out = jax.vmap(jax.grad(loss, has_aux=True))(*given)
    expected = x @ kernels + [1.0, -2.0]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads, x.swapaxes(1, 2) @ (expected - wanted), rtol=1e-4, atol=1e-5)
    assert "dot_general" not in str(jax.make_jaxpr(jax.vmap(loss))(*given))
    wide = networks.Layers((40,), "tanh", 2, by_sums=True)
    program = jax.make_jaxpr(lambda x: wide.init_with_output(KEY, x)[0])(given[1])
    assert str(program).count("dot_general[") == 2


@pytest.mark.parametrize("space", [Box(-1.0, 1.0, (2, 5)), Box(0, 255, (6, 5, 2), jnp.uint8), Discrete(7)], ids=str)
def test_any_batch_axes(space):
    """`[T, N, ...]` at once gives what its rows give one by one, and the encoding is the network's own."""
    net = networks.make(None, space, 3, (8,), "tanh")
    obs = jax.random.randint(KEY, (4, 2, *space.shape), 0, 7).astype(space.dtype)

    @jax.jit
    def outputs(key):
        params = networks.init(key, net)[0]
        return net.apply(params, obs), net.apply(params, obs[2, 1]), net.apply(params, networks.encode(obs, space))

    many, one, encoded = outputs(KEY)
    assert many.shape == (4, 2, 3)
    np.testing.assert_allclose(many[2, 1], one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many, encoded, rtol=1e-5, atol=1e-6)


def test_every_activation_is_flax_s():
    nets = [network((3,), 1, (4,), name) for name in networks.ACTIVATIONS]
    outputs = jax.eval_shape(lambda key: [net.apply(networks.init(key, net)[0], jnp.ones(3)) for net in nets], KEY)
    assert len(outputs) >= 12 and all(x.shape == (1,) for x in outputs)


def test_swish_is_flax_s():
    """Within two roundings of the input, and its slope."""
    x = jnp.concatenate([jnp.linspace(-30, 30, 601), jnp.array([-1e6, 1e6])])
    two_roundings = 2 * np.finfo(np.float32).eps * np.abs(x) + 1e-30
    assert (np.abs(networks.swish(x) - nn.swish(x)) <= two_roundings).all()
    slopes = (jax.vmap(jax.grad(f))(x[:-2]) for f in (networks.swish, nn.swish))
    np.testing.assert_allclose(*slopes, atol=4e-6)
    for name in ("silu", "swish"):
        net = network((1,), 1, (1,), name)
        params = networks.init(KEY, net)[0]
        kernels = [params["params"]["body"][layer]["kernel"][0, 0] for layer in ("Dense_0", "Dense_1")]
        np.testing.assert_allclose(net.apply(params, jnp.ones(1))[0], nn.swish(kernels[0]) * kernels[1], rtol=1e-5)


def test_image_network():
    """3 x 3 convolution of 16 channels without padding: 10 x 10 x 4 becomes 8 x 8 x 16."""
    image = network((10, 10, 4), 3, (8,), "relu")
    params = jax.eval_shape(image.init, KEY, jnp.zeros((1, 10, 10, 4)))
    layers = params["params"]["body"]
    assert layers["Conv"]["kernel"].shape == (3 * 3 * 4, 16)
    assert layers["Dense_0"]["kernel"].shape == (8 * 8 * 16, 8)
    output = jax.eval_shape(image.apply, params, jnp.ones((2, 10, 10, 4)))
    assert output.shape == (2, 3) and output.dtype == jnp.float32


class Own(nn.Module):
    """A network of the user's own, with an initialiser of its own."""

    num_outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.constant(0.5))(x)


def test_own_networks_keep_their_initialisers():
    """Beside a plain one, which is drawn orthogonal; a module and a factory are the same."""
    own, made, plain = (networks.make(x, Box(0, 255, (4,), jnp.uint8), 2, (3,), "tanh") for x in (Own(2), Own, None))
    first, second, third = jax.jit(lambda key: networks.init(key, own, made, plain))(KEY)
    kernel = first["params"]["body"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel, np.full((4, 2), 0.5))
    np.testing.assert_array_equal(second["params"]["body"]["Dense_0"]["kernel"], kernel)
    np.testing.assert_allclose(own.apply(first, jnp.full(4, 51, jnp.uint8)), [0.4, 0.4], rtol=1e-6)  # 51 / 255 each
    drawn = np.asarray(third["params"]["body"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(drawn.T @ drawn, 2 * np.eye(3), atol=2e-3)


class Normed(nn.Module):
    """Keeps running statistics, which nothing would update."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(x))


class Dropped(nn.Module):
    """Asks for a key that nobody gives it."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dropout(0.1, deterministic=False)(x))


class Wide(nn.Module):
    """Its first field is not the number of outputs."""

    width: int = 8
    num_outputs: int = 1

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_outputs)(nn.Dense(self.width)(x))


def test_a_class_is_told_the_number_of_outputs_by_name():
    assert networks.make(Wide, Box(-1.0, 1.0, (4,)), 2, (3,), "tanh").body == Wide(num_outputs=2)


@pytest.mark.parametrize(
    ("own", "error", "said"),
    [
        (Normed(), ValueError, "Normed, must hold parameters alone, but holds batch_stats too"),
        (lambda: Own(2), TypeError, "must take the number of outputs, 2, and give a flax module"),
        (Dropped(), ValueError, "Dropped, cannot be run on observations alone: .*dropout"),
    ],
)
def test_networks_that_cannot_be_trained(own, error, said):
    with pytest.raises(error, match=said):
        networks.make(own, Box(-1.0, 1.0, (4,)), 2, (3,), "tanh")


def test_networks_that_read_an_action_too():
    """Both as one vector, the action behind the flattened observation; a module of the wrong shape is told of both."""
    space = Box(0, 255, (2, 5), jnp.uint8)
    plain, own = (networks.make(x, space, 3, (4,), "tanh", action_size=2) for x in (None, Own(3)))
    drawn, given = jax.jit(lambda key: networks.init(key, plain, own))(KEY)
    assert drawn["params"]["body"]["Dense_0"]["kernel"].shape == (10 + 2, 4)
    output = own.apply(given, jnp.full((4, 2, 5), 51, jnp.uint8), jnp.ones((4, 2)))
    np.testing.assert_allclose(output, np.full((4, 3), 0.5 * (10 * 0.2 + 2)), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"must give \[2\] for observations \[2, 5\] and actions \[2\], but gives \[3\]"
    ):
        networks.make(Own(3), space, 2, (4,), "tanh", action_size=2)


def test_patches_make_a_convolution():
    """A dense layer on the patches is the convolution with the same kernel."""
    key, image_key = jax.random.split(KEY)
    images, kernel = jax.random.normal(image_key, (2, 6, 5, 3)), jax.random.normal(key, (3, 3, 3, 7))
    expected = jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    dense = jnp.einsum("...p,po->...o", networks.patches(images), kernel.reshape(27, 7))
    np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=1e-4)


LAPACK = re.compile(r"= ((?:qr|geqrf|geqp3|householder|svd|cholesky|lu|eig|schur|triangular_solve|hessenberg)\w*)\b")


def lapack_calls(function, *args):
    """LAPACK primitives in a traced function; a printed jaxpr shows those inside it as well."""
    return LAPACK.findall(str(jax.make_jaxpr(function)(*args)))


def test_lapack_calls_are_found():
    """The search itself: jax's own orthogonal initialiser uses QR."""
    assert lapack_calls(jax.jit(jax.vmap(lambda key: jax.nn.initializers.orthogonal()(key, (4, 4)))), KEY[None])
    for function in (jnp.linalg.svd, jnp.linalg.cholesky, jnp.linalg.inv, jnp.linalg.eigh):
        assert lapack_calls(function, jnp.eye(3))


@pytest.mark.parametrize("algorithm", [ppo, dqn])
@pytest.mark.parametrize("env", ["CartPole-v1", "Breakout-MinAtar"])
def test_init_makes_no_lapack_calls(algorithm, env):
    """Batched LAPACK calls can deadlock on CPU, and vmap over seeds batches whatever init calls."""
    small = {"learning_starts": 8, "buffer_size": 128} if algorithm is dqn else {}
    assert not lapack_calls(algorithm.init, KEY, algorithm.Config(env=env, **small))


def test_vmapped_init_finishes():
    """64 seeds of six 64 x 64 layers, which hung with QR; in a process of its own, since a hang cannot be caught."""
    program = """
        import jax, jax.numpy as jnp
        from purerl.core import networks
        from purerl.envs import Box
        network = networks.make(None, Box(-1.0, 1.0, (64,)), 2, (64,) * 6, "tanh")
        init = jax.jit(jax.vmap(lambda key: networks.init(key, network)))
        kernel = init(jax.random.split(jax.random.key(0), 64))[0]["params"]["body"]["Dense_5"]["kernel"]
        print(kernel.shape, bool(jnp.isfinite(kernel).all()))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(64, 64, 64) True", done.stderr
