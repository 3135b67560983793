"""The demo of the probabilistic SPN, in minutes on a CPU (`make demo-probabilistic`).

    python scripts/make_demo_photos.py --output runs/demo/photos --size 128
    python -m teacher_export --config configs/demo_probabilistic.py
    python -m spn_jax.train --config configs/demo_probabilistic.py --workdir runs/demo/probabilistic
    python -m spn_jax.evaluate run --checkpoint runs/demo/probabilistic \\
        --output runs/demo/probabilistic_evaluation --grid 6

Data, teacher and cache: those of configs/demo.py. VGG19 of the perceptual losses has seeded random
weights as well: the trained ones have to be downloaded.
Hardware: two CPU cores. Cost: 5 to 10 minutes of training.
Expected: different colours and shades in the same hole, the photo untouched around it. The numbers
measured are in docs/results.md.
"""

from spn_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            width=16,
            dense_blocks=4,
            dense_layers=4,
            growth=16,
            prior_blocks=2,
            middle_blocks=4,
            spade_hidden=16,
            variational=True,
            latent_channels=32,
            discriminator="instance_norm",
            discriminator_width=16,
        ),
        data=DataConfig(
            train_photos="runs/demo/photos/train",
            test_photos="runs/demo/photos/test",
            train_masks="drawn",
            test_masks="drawn",
            image_size=64,
        ),
        teacher=TeacherConfig(name="efficientnet_lite0", cache="runs/demo/teacher"),
        loss=LossConfig(prior=0.03, adversarial="hinge", feature_matching=10, perceptual=10, diversity=1, kl=0.05, vgg="random"),
        optimizer=OptimizerConfig(learning_rate=5e-4),
        schedule=ScheduleConfig(unit="steps", length=300, learning_rate_drops=(240,)),
        train=TrainConfig(batch_size=4, samples=2, log_every=10, image_every=300, eval_every=300, checkpoint_every=50),
        eval=EvalConfig(batch_size=8, samples=5),
    )
