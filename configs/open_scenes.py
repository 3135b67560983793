"""The model that comes with the package: a small SPN, free from photos to weights.

    apt-get download endless-sky-high-dpi  # Debian's package of free landscapes; any mirror has it
    python scripts/prepare_dataset.py open-scenes --source endless-sky-high-dpi_0.9.8-1_all.deb \\
        --source scikit-image --output data/open_scenes
    python -m teacher_export.weights efficientnet_lite0 data/efficientnet_lite0.npz
    # first small squares, many of them, then larger ones, with which it goes on:
    python -m spn_jax.train --config configs/open_scenes.py --workdir runs/open_scenes_64
    python -m spn_jax.train --config configs/open_scenes.py --workdir runs/open_scenes_128 \\
        --init runs/open_scenes_64 data.image_size=128 train.batch_size=4 \\
        optimizer.learning_rate=0.0007 schedule.learning_rate_drops=1300,1700
    python scripts/make_pretrained.py runs/open_scenes_128 \\
        --output spn_jax/pretrained/open_scenes/weights.npz

Data: 156 photos in the public domain or CC0, 22 of other scenes held out; at every step new squares
of random side and place, so that a photo of 1440 x 720 pixels is seen at all scales between 1 and
1/11. Masks: strokes and shapes of objects, drawn, in all six ratios.
Teacher: EfficientNet-Lite0 trained on ImageNet (Apache-2.0), run in the step: 2.6 % of its time.
Its maps are 4 to 7 on average, forty times those of a random TResNet-L, so loss.prior is 0.03 and
not the paper's 1.
Model: hole_fill=smooth instead of the paper's white holes. The generator adds to colours that are
continued from around the hole, which alone score what OpenCV's Navier-Stokes does (28.96 dB beside
28.98 at 64 x 64 pixels). With white holes a model of this size needs hours to come so far.
Optimiser: Adam with beta1 = 0.9 and beta2 = 0.99 instead of the paper's 0 and 0.9, which the
adversarial loss asks for: it weighs 0.1 here and not 1.
Hardware: two CPU cores. Cost: 18 photos/s of 64 x 64 pixels when nothing else runs.
Expected: spn_jax/pretrained/open_scenes/MODEL_CARD.md has the scores.
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
            middle_blocks=6,
            spade_hidden=32,
            spade_hidden_up_to_prior=True,
            hole_fill="smooth",
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
        loss=LossConfig(prior=0.03, adversarial_weight=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-3, beta1=0.9, beta2=0.99),
        schedule=ScheduleConfig(unit="steps", length=2000, learning_rate_drops=(), drop_factor=0.3),
        train=TrainConfig(batch_size=8, ema_decay=0.998, log_every=100, image_every=1000, eval_every=500, checkpoint_every=250),
        eval=EvalConfig(batch_size=8),
    )
