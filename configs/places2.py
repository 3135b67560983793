"""Deterministic SPN on Places2, 256 x 256 (paper, Table 1).

    # once; FILE is ASL's TResNet-L trained on OpenImages:
    python -m teacher_export.weights tresnet_l --weights FILE data/tresnet_l.npz
    python -m spn_jax.train --config configs/places2.py
    python -m spn_jax.evaluate run --checkpoint runs/places2 --pairs places2

Data: data/places2/train (1,803,460 photos), data/places2/test (first 12,000 of the validation set),
and the irregular mask set (12,000 files) as data/irregular_masks.zip (scripts/prepare_dataset.py
makes all three). Photos are resized directly.
Hardware: the paper's batch of 4 a GPU on 2 GPUs; one GPU may take the whole batch of 8 (its
memory is not measured yet; train.micro_batches and train.rematerialise lower it).
Cost: 40 epochs of 225,432 steps. Every 20,000 steps the first 1,000 test photos are scored, all of
them by `evaluate`. The teacher runs in the training step: its features would be a cache of 15 TB in
bfloat16 with zstd (22 TB without).
Expected (paper, Table 1; 20-40 % / 40-60 % / All): PSNR 26.65 / 22.18 / 27.72, SSIM 0.897 / 0.763 /
0.877, MAE 0.0158 / 0.0351 / 0.0185. Not yet reproduced with this program.
"""

from spn_jax.config import Config, DataConfig, EvalConfig, ScheduleConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            train_photos="data/places2/train",
            test_photos="data/places2/test",
            train_masks="data/irregular_masks.zip",
            test_masks="data/irregular_masks.zip",
        ),
        teacher=TeacherConfig(mode="online", weights="data/tresnet_l.npz"),
        schedule=ScheduleConfig(length=40, learning_rate_drops=(30,)),
        train=TrainConfig(eval_every=20_000),
        eval=EvalConfig(photos=1000),
    )
