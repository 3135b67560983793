"""Probabilistic SPN on CelebA-HQ, 256 x 256 (paper, Table 2).

    # once; FILE is ASL's TResNet-L trained on OpenImages:
    python -m teacher_export --config configs/celebahq_probabilistic.py --weights FILE
    # once; VGG19 serves the perceptual losses:
    python -m teacher_export.weights vgg19 --weights vgg19-dcbb9e9d.pth data/vgg19.npz
    python -m spn_jax.train --config configs/celebahq_probabilistic.py
    python -m spn_jax.evaluate run --checkpoint runs/celebahq_probabilistic --pairs celebahq

Data: data/celebahq/train (27,200 photos), data/celebahq/test (2,800), and the irregular mask set
(12,000 files) as data/irregular_masks.zip. Photos are resized directly.
Hardware: the paper's batch of 4 a GPU on 2 GPUs, two completions of each photo; one GPU may take
the whole batch of 8 (its memory is not measured yet; train.micro_batches and train.rematerialise
lower it).
Cost: 70 epochs of 3,400 steps; learning rate x 0.1 from epoch 51, prior loss off from epoch 61
(released notes). The cache of features takes 230 GB in bfloat16 with zstd (both orientations; 340
GB without).
Expected (paper, Table 2; 0-20 % / 20-40 % / 40-60 % / All; best of 5 samples by PSNR): PSNR 35.72 /
27.68 / 23.32 / 28.90, SSIM 0.971 / 0.894 / 0.777 / 0.881, MAE 0.0038 / 0.0140 / 0.0305 / 0.0160.
Not yet reproduced with this program.
"""

from spn_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, ScheduleConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(variational=True, spade_hidden_up_to_prior=True, discriminator="instance_norm"),
        data=DataConfig(
            train_photos="data/celebahq/train",
            test_photos="data/celebahq/test",
            train_masks="data/irregular_masks.zip",
            test_masks="data/irregular_masks.zip",
        ),
        teacher=TeacherConfig(cache="data/celebahq/teacher"),
        loss=LossConfig(adversarial="hinge", feature_matching=10, perceptual=10, diversity=1, kl=0.05, vgg="data/vgg19.npz"),
        schedule=ScheduleConfig(length=70, learning_rate_drops=(50,), prior_loss_until=60),
        train=TrainConfig(samples=2),
        eval=EvalConfig(batch_size=4, samples=5, photos=500),
    )
