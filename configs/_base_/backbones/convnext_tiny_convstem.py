# ConvNeXt-T with the ConvStem of arXiv 2303.01870, whose robust weights take images in
# [0, 1] without further normalisation. They are to be had from that paper's authors
# (github.com/nmndeep/revisiting-at) and have to lie in the file named here, as
# published or converted.
convstem_data_preprocessor = dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0])
convstem_backbone = dict(
    type='mmrobust.ConvNeXtConvStem',
    init_cfg=dict(checkpoint='checkpoints/convnext_tiny_convstem_linf4.pth'),
)
