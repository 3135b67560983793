"""The demo: a small SPN on tiles of the photos that ship with scikit-image, on a CPU, in minutes (`make demo`).

    python scripts/make_demo_photos.py --output runs/demo/photos --size 128
    python -m teacher_export --config configs/demo.py --weights random
    python -m spn_jax.train --config configs/demo.py --workdir runs/demo/run
    python -m spn_jax.evaluate run --checkpoint runs/demo/run --method mean --method opencv-telea --output runs/demo/evaluation

Data: tiles at 64 x 64, split by scene (whole photos held out), and drawn masks of all six hole ratios.
Teacher: TResNet-L with seeded random weights, the paper's "SPN w/ rand" (Fig. 9): the pretrained one has to be downloaded.
Hardware: two CPU cores. Cost: a cache of some 100 MB, 2 to 5 minutes of training.
Expected: clearly better than filling holes with the mean colour. A few minutes on a few photos make no good inpainter;
the numbers measured are in docs/results.md.
"""

from spn_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TeacherConfig, TrainConfig


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
            discriminator_width=16,
        ),
        data=DataConfig(train_photos="runs/demo/photos/train", test_photos="runs/demo/photos/test", image_size=64),
        teacher=TeacherConfig(cache="runs/demo/teacher"),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(unit="steps", length=300, learning_rate_drops=(240,)),
        train=TrainConfig(batch_size=8, log_every=10, image_every=150, eval_every=150, checkpoint_every=150),
        eval=EvalConfig(batch_size=8),
    )
