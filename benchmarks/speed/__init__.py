r"""How fast purerl trains, against four other libraries on the same work, and where its time goes.

    python -m benchmarks.speed                        every case; a good hour on two idle cores
    python -m benchmarks.speed ppo-1 dqn-1            some of them
    python -m benchmarks.speed --quick --out DIR      a functional check in a few minutes: its numbers mean nothing

Cases:
    ppo-1, ppo-16, dqn-1   env steps per second, tracing, compiling, peak memory; purerl and rejax take turns
    profile                where an update of one seed of PPO spends its time, kernel by kernel, in purerl and in rejax
    import                 seconds until each library can be used, in a fresh process
    shares                 what part of an update is env, policy, gradient steps; their share of the matmul peak
    replay                 bytes per stored transition; DQN's speed with a full memory of 1e4 and of 1e6 transitions
    metrics                bytes of the metrics that `train` returns, for small and large updates
    tabular                env steps per second of 1,000 seeds of Q-learning on FrozenLake, and of the env alone
    planning               seconds of one sweep of value iteration over 100,000 states with 4 actions and 4 successors
    pqn                    PQN's env steps per second on CartPole and Breakout over DQN's, each with its tuned settings
    a2c                    A2C's env steps per second with 64 envs over PPO's and over Stable-Baselines3's
    trpo                   the time of TRPO's update over that of PPO's on equal data
    two-cores              env steps per second of 16 seeds of each policy gradient on two cores and on one
    compile                seconds of tracing and compiling each policy gradient over PPO's, in fresh processes
    sac-1, td3-1           as ppo-1: SAC and TD3 on Pendulum beside rejax; and their compile time over rejax's
    sac-256                SAC's env steps per second with 256-256 networks over Stable-Baselines3's and over SBX's
    sac-parts              what SAC's gradient step of that size is made of; its share of the matrix-product peak
    hopper-replay          bytes per transition of hopper; speed of a full memory of 1e4 and of 1e6, alone and in SAC
    off-policy-cores       env steps per second of 16 seeds of SAC and of TD3 on two cores and on one
    cem                    CEM's env steps per second, population 256, over those of CartPole alone
    pets                   PETS's env steps per second on Pendulum over mbrl-lib's
    pets-parts             seconds of 3,000 env steps of PETS; planning, training and env steps; share of the peak

The cases of policy gradients, of SAC and TD3, and of search and planning are written to folders of their own:

    python -m benchmarks.speed a2c trpo two-cores compile --out benchmarks/results/speed/policy_gradients
    python -m benchmarks.speed sac-1 td3-1 sac-256 sac-parts hopper-replay off-policy-cores \
        --out benchmarks/results/speed/off_policy
    python -m benchmarks.speed cem pets pets-parts --out benchmarks/results/speed/search

rejax is started as it comes, with NPROC, and with the devices and the flags that purerl gives itself; against the first
two and against the last there is a ratio each.

The libraries need different versions of gymnax, so each works in a process of its own, which reads requests and
writes answers as lines of JSON; only one of them works at a time. The virtual environment of another library is made
when a case first needs it; those of Stable-Baselines3, SBX and mbrl-lib take 1 GB each with PyTorch's build for CPUs,
more with the one for GPUs.
Writes speed.csv and speed.md, which hold this run's cases and no others; speed.md says how long each case took.

A library is one file in `sides`, an entry in `cases.LIBRARIES`, and its starts beside the cases that need it.
"""
