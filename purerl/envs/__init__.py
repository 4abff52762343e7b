"""One interface to gymnax, Brax, tables and environments of your own.

`make` turns a name or an object into an `Env`: pure functions of a single environment that know nothing of batches
and never reset themselves. `bind` gives algorithms N of them side by side.

An environment of your own is any hashable object with these five members (see `Env`), and two that may be left out:
the number of steps within which an episode ends, which reinforce asks for, and metrics, of which a training shows the
means over the ends of episodes:

    class Corridor:
        '''Walk right along n cells; the last one pays 1 and ends the episode.'''
        default_params = {"length": 5}

        def observation_space(self, params):
            return Box(low=0.0, high=jnp.inf, shape=(1,))

        def action_space(self, params):
            return Discrete(2)

        def reset(self, key, params):
            position, time = jnp.int32(0), jnp.int32(0)
            return self.observe(position), (position, time)

        def step(self, key, state, action, params):
            position, time = state
            position = jnp.maximum(position + 2 * action - 1, 0)
            terminated = position >= params["length"]
            truncated = time + 1 >= 20
            reward = jnp.where(terminated, 1.0, 0.0)
            return self.observe(position), (position, time + 1), reward, terminated, truncated

        def observe(self, position):
            return position.astype(jnp.float32)[None]

        def max_episode_steps(self, params):
            return 20

        def metrics(self, state, params):
            return {"distance": state[0]}
"""

from purerl.envs.bound import BoundEnv, EnvState, Tick, bind, with_tables
from purerl.envs.brax import Brax
from purerl.envs.gymnax import Gymnax
from purerl.envs.mdp.model import Tabular
from purerl.envs.protocol import Env, check, max_episode_steps
from purerl.envs.spaces import Box, Discrete, Space
from purerl.envs.suites import make, names, suite_of

__all__ = [
    "BoundEnv",
    "Box",
    "Brax",
    "Discrete",
    "Env",
    "EnvState",
    "Gymnax",
    "Space",
    "Tabular",
    "Tick",
    "bind",
    "check",
    "make",
    "max_episode_steps",
    "names",
    "suite_of",
    "with_tables",
]
