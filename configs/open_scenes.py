"""draft"""

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
            middle_blocks=6,
            spade_hidden=32,
            discriminator_width=16,
        ),
        data=DataConfig(
            train_photos="data/open_scenes/train",
            test_photos="data/open_scenes/test_crops",
            train_masks="drawn",
            test_masks="drawn",
            image_size=64,
            crop="random",
            flip="together",
            keep_decoded=2000,
        ),
        teacher=TeacherConfig(name="efficientnet_lite0", mode="online", weights="data/efficientnet_lite0.npz"),
        loss=LossConfig(prior=0.1, adversarial_weight=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta1=0.9, beta2=0.99),
        schedule=ScheduleConfig(unit="steps", length=100_000, learning_rate_drops=(80_000, 90_000), drop_factor=0.3),
        train=TrainConfig(batch_size=8, ema_decay=0.999, log_every=100, image_every=2000, eval_every=1000, checkpoint_every=500),
        eval=EvalConfig(batch_size=8),
    )
