"""Images, videos and labels: how DATA is opened, read and cut into batches. Knows nothing of models.

The room, from the ground up:

    scale        which number of a file is black, and which is white
    formats      readers of files that PIL does not read, or not at full depth: arrays, DICOM
    tiffs        TIFFs of any depth and any number of bands, whole or a part of them
    rasters      what GDAL reads and others do not
    decoding     files of images, in the form that a model takes
    parts        images of which parts are read
    source       what every kind of data answers for itself: the protocols
    images       kinds of images: folders, tars, what timm's dataset names stand for, digits
    tables       tables that name files
    stacks       images whose bands lie in files of their own
    videos       files of video and folders of frames
    synthetic    videos without files: images that move
    clips        clips of videos, as a source
    kinds        one table of all kinds, and how DATA is opened; a new kind is one class and one row there
    targets      what is told of an image: one class, several tags, or values
    labels       labels in the columns of a table: what they are, and what they say of each image
    splits       labelled data to train on and to measure on, and data that are cut in two
    weights      weights of classes and tags
    transforms   from what is read to what a model takes
    batches      which items belong to which step, and batches for training
    seeds        random numbers that follow from a seed alone
"""
