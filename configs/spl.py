"""SPL, the predecessor of SPN (Zhang et al., IJCAI 2021), on Paris StreetView, 256 x 256.

    # once; FILE is ASL's TResNet-L trained on OpenImages:
    python -m teacher_export --config configs/spl.py --weights FILE
    python -m spn_jax.train --config configs/spl.py
    python -m spn_jax.evaluate run --checkpoint runs/spl

One prior at a quarter of the photo's size, and a decoder that finds its own regions to normalise.
Otherwise SPN's networks and losses.
Data: data/paris_streetview/train (14,900 photos), data/paris_streetview/test (100), and the
irregular mask set (12,000 files) as data/irregular_masks.zip (scripts/prepare_dataset.py makes all
three). Photos are resized directly; cache and data are those of configs/paris_streetview.py. For
CelebA and Places2 take the data, teacher, train and eval settings of their configs, 40 epochs, a
drop after 30, and the prior loss always on.
Hardware: the paper's batch of 4 a GPU on 2 GPUs.
Cost: 70 epochs of 1,862 steps; learning rate x 0.1 after 50 epochs, prior loss off in the last 10
(released notes). The cache of features takes 125 GB in bfloat16 with zstd (both orientations; 185
GB without).
Expected (paper, Table 1; 20-40 % / 40-60 % / All): PSNR 29.34 / 24.47 / 29.38, SSIM 0.911 / 0.790 /
0.882, MAE 0.0115 / 0.0292 / 0.0161. Not yet reproduced with this program.
"""

from spn_jax.config import Config, DataConfig, ModelConfig, ScheduleConfig, TeacherConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(prior_levels=(3,), decoder="region_norm", prior_encoder_slope=0.1),
        data=DataConfig(
            train_photos="data/paris_streetview/train",
            test_photos="data/paris_streetview/test",
            train_masks="data/irregular_masks.zip",
            test_masks="data/irregular_masks.zip",
        ),
        teacher=TeacherConfig(cache="data/paris_streetview/teacher"),
        schedule=ScheduleConfig(length=70, learning_rate_drops=(50,), prior_loss_until=60),
    )
