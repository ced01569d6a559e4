"""Raw datasets as they are downloaded: layouts on disk, file names, images and their geometry."""
