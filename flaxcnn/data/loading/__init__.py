"""From a split to batches on the devices.

sampler       the indices of the examples in each batch
loader        the protocol of the two loaders, and the choice between them
in_memory     loader that decodes a split once, keeps it on the devices, and gathers batches in the compiled step
streaming     loader that decodes each batch ahead of use
batch         the input of a compiled step, and its conversion to a batch
worker_pool   the processes that decode for the streaming loader; `worker` is the program that they run
prefetch      fetching batches ahead of use
bad_images    images that cannot be read: stop at the first one, or count them
"""
