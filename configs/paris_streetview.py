"""Deterministic SPN on Paris StreetView, 256 x 256 (paper, Table 1).

    # once; FILE is ASL's TResNet-L trained on OpenImages:
    python -m teacher_export --config configs/paris_streetview.py --weights FILE
    python -m spn_jax.train --config configs/paris_streetview.py
    python -m spn_jax.evaluate run --checkpoint runs/paris_streetview

Data: data/paris_streetview/train (14,900 photos), data/paris_streetview/test (100), and the
irregular mask set (12,000 files) as data/irregular_masks.zip (scripts/prepare_dataset.py makes all
three). Photos are resized directly.
Hardware: the paper's batch of 4 a GPU on 2 GPUs, about one day on two V100; one GPU may take the
whole batch of 8 (its memory is not measured yet; train.micro_batches and train.rematerialise lower
it).
Cost: 75 epochs of 1,862 steps; learning rate x 0.1 after 50 epochs, prior loss off in the last 15
(released notes). The cache of features takes 125 GB in bfloat16 with zstd (both orientations; 185
GB without).
Expected (paper, Table 1; 20-40 % / 40-60 % / All): PSNR 29.76 / 24.67 / 29.69, SSIM 0.916 / 0.795 /
0.886, MAE 0.0109 / 0.0282 / 0.0154. Not yet reproduced with this program.
"""

from spn_jax.config import Config, DataConfig, ScheduleConfig, TeacherConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            train_photos="data/paris_streetview/train",
            test_photos="data/paris_streetview/test",
            train_masks="data/irregular_masks.zip",
            test_masks="data/irregular_masks.zip",
        ),
        teacher=TeacherConfig(cache="data/paris_streetview/teacher"),
        schedule=ScheduleConfig(length=75, learning_rate_drops=(50,), prior_loss_until=60),
    )
