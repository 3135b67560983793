"""The smallest SPN: what the tests train, on photos of 32 x 32 pixels with nothing wide.

    python -m teacher_export --config configs/tiny.py --weights random data.train_photos=DIR \\
        data.test_photos=DIR
    python -m spn_jax.train --config configs/tiny.py data.train_photos=DIR data.test_photos=DIR

Hardware: any. Cost: seconds, most of them compilation. The result is of no use but to the tests.
"""

from spn_jax.config import Config, DataConfig, EvalConfig, ModelConfig, ScheduleConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            width=4,
            dense_blocks=1,
            dense_layers=2,
            growth=4,
            prior_blocks=1,
            middle_blocks=1,
            spade_hidden=8,
            discriminator_width=4,
        ),
        data=DataConfig(image_size=32, threads=2, prefetch=2),
        teacher=TeacherConfig(cache="runs/tiny/teacher", records_per_shard=8, batch_size=4),
        schedule=ScheduleConfig(unit="steps", length=6, learning_rate_drops=(4,)),
        train=TrainConfig(batch_size=4, log_every=1, image_every=100, eval_every=4, checkpoint_every=2),
        eval=EvalConfig(batch_size=4),
    )
