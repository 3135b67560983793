"""Probabilistic SPN on Paris StreetView, 256 x 256 (paper, Table 2).

    # once; FILE is ASL's TResNet-L trained on OpenImages:
    python -m teacher_export --config configs/paris_streetview_probabilistic.py --weights FILE
    # once; VGG19 serves the perceptual losses:
    python -m teacher_export.weights vgg19 --weights vgg19-dcbb9e9d.pth data/vgg19.npz
    python -m spn_jax.train --config configs/paris_streetview_probabilistic.py
    python -m spn_jax.evaluate run --checkpoint runs/paris_streetview_probabilistic

Data: data/paris_streetview/train (14,900 photos), data/paris_streetview/test (100), and the
irregular mask set (12,000 files) as data/irregular_masks.zip (scripts/prepare_dataset.py makes all
three). Photos are resized directly; cache and data are those of configs/paris_streetview.py.
Hardware: the paper's batch of 4 a GPU on 2 GPUs, two completions of each photo; one GPU may take
the whole batch of 8 (its memory is not measured yet; train.micro_batches and train.rematerialise
lower it).
Cost: 75 epochs of 1,862 steps; learning rate x 0.1 after 50 epochs, prior loss off in the last 15
(released notes). The cache of features takes 125 GB in bfloat16 with zstd (both orientations; 185
GB without).
Expected (paper, Table 2; 0-20 % / 20-40 % / 40-60 % / All; best of 5 samples by PSNR): PSNR 35.03 /
28.71 / 23.66 / 28.56, SSIM 0.966 / 0.896 / 0.763 / 0.865, MAE 0.0045 / 0.0127 / 0.0323 / 0.0179.
Not yet reproduced with this program.
"""

from spn_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, ScheduleConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(variational=True, spade_hidden_up_to_prior=True, discriminator="instance_norm"),
        data=DataConfig(
            train_photos="data/paris_streetview/train",
            test_photos="data/paris_streetview/test",
            train_masks="data/irregular_masks.zip",
            test_masks="data/irregular_masks.zip",
        ),
        teacher=TeacherConfig(cache="data/paris_streetview/teacher"),
        loss=LossConfig(adversarial="hinge", feature_matching=10, perceptual=10, diversity=1, kl=0.05, vgg="data/vgg19.npz"),
        schedule=ScheduleConfig(length=75, learning_rate_drops=(50,), prior_loss_until=60),
        train=TrainConfig(samples=2),
        eval=EvalConfig(batch_size=4, samples=5),
    )
