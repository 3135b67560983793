"""Deterministic SPN on CelebA, 256 x 256 (paper, Table 1).

    # once; FILE is ASL's TResNet-L trained on OpenImages:
    python -m teacher_export --config configs/celeba.py --weights FILE
    python -m spn_jax.train --config configs/celeba.py
    python -m spn_jax.evaluate run --checkpoint runs/celeba --pairs celeba

Data: data/celeba/train (162,770 photos), data/celeba/test (first 12,000 of the test set), and the
irregular mask set (12,000 files) as data/irregular_masks.zip (scripts/prepare_dataset.py makes all
three). Photos are cut to a centred square, then resized.
Hardware: the paper's batch of 4 a GPU on 2 GPUs; one GPU may take the whole batch of 8 (its
memory is not measured yet; train.micro_batches and train.rematerialise lower it).
Cost: 40 epochs of 20,346 steps. Every 20,000 steps the first 1,000 test photos are scored, all of
them by `evaluate`. The cache of features takes 1.4 TB in bfloat16 with zstd (both orientations; 2
TB without).
Expected (paper, Table 1; 20-40 % / 40-60 % / All): PSNR 32.39 / 26.54 / 33.52, SSIM 0.952 / 0.871 /
0.937, MAE 0.0077 / 0.0200 / 0.0099. Not yet reproduced with this program.
"""

from spn_jax.config import Config, DataConfig, EvalConfig, ScheduleConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            train_photos="data/celeba/train",
            test_photos="data/celeba/test",
            train_masks="data/irregular_masks.zip",
            test_masks="data/irregular_masks.zip",
            crop="center",
        ),
        teacher=TeacherConfig(cache="data/celeba/teacher"),
        schedule=ScheduleConfig(length=40, learning_rate_drops=(30,)),
        train=TrainConfig(eval_every=20_000),
        eval=EvalConfig(photos=1000),
    )
