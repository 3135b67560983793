"""The demo: the shipped model, fine-tuned for minutes on other photos (`make demo`).

    python scripts/make_demo_photos.py --output runs/demo/photos --size 128
    python -m teacher_export --config configs/demo.py
    python -m spn_jax.train --config configs/demo.py --workdir runs/demo/run \\
        --init pretrained:open_scenes
    python -m spn_jax.evaluate run --checkpoint shipped=pretrained:open_scenes \\
        --checkpoint trained=runs/demo/run --config configs/demo.py --method mean \\
        --method opencv-telea --method opencv-ns --output runs/demo/evaluation

Data: tiles at 64 x 64 of the photos that ship with scikit-image, split by scene (whole photos held
out), and drawn masks of all six hole ratios.
Teacher: EfficientNet-Lite0 trained on ImageNet, whose weights come in a package (extra `teacher`).
Model: that of configs/open_scenes.py, whose parameters it starts from, at the learning rate that
those ended with.
Hardware: two CPU cores. Cost: a cache of some 50 MB, 2 to 3 minutes of training.
Expected: about what the model scores that it starts from. A few minutes on a few photos make no
better inpainter; they show the way from photos to scores. The numbers measured are in
docs/results.md.
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
        model=ModelConfig(  # of configs/open_scenes.py
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
            train_photos="runs/demo/photos/train",
            test_photos="runs/demo/photos/test",
            train_masks="drawn",
            test_masks="drawn",
            image_size=64,
        ),
        teacher=TeacherConfig(name="efficientnet_lite0", cache="runs/demo/teacher"),
        loss=LossConfig(prior=0.03, adversarial_weight=0.1),
        optimizer=OptimizerConfig(learning_rate=6.3e-5, beta1=0.9, beta2=0.99),
        schedule=ScheduleConfig(unit="steps", length=100, learning_rate_drops=(80,)),
        train=TrainConfig(batch_size=8, ema_decay=0.9, log_every=10, image_every=50, eval_every=50, checkpoint_every=50),
        eval=EvalConfig(batch_size=8),
    )
