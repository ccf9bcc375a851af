"""The stage of `capmix annotate --method image`: numbers of every image, one part per shard."""

from capmix.annotate.image_numbers import FIELDS, HASH, SIDE, ImageNumbers, image_numbers
from capmix.engine.local import cores
from capmix.engine.read_ahead import ReadAhead
from capmix.engine.stage import PartWriter, Stage
from capmix.models.device import alone_on_its_core
from capmix.models.images import BadImageError
from capmix.models.index import bad_row, pool_inputs
from capmix.pool import BadSample, ImagePool, Sample, Shard
from capmix.storage.layout import annotation_folder
from capmix.storage.rows import FAILED, Row, column_names, table_of

AHEAD = 256  # images


def image_stage(pool: ImagePool, name: str) -> Stage:
    """Return the stage that writes the columns of image_numbers as the annotation `name`.

    An image that cannot be decoded is a failed row with the decoder's reason.
    """
    rows: ReadAhead[Shard, Sample | BadSample, Row]
    rows = ReadAhead(lambda shard: pool.read(shard), _row, cores(), AHEAD, alone_on_its_core())

    def run_shard(shard: Shard, out: PartWriter) -> None:
        found = []
        for _, finished in rows.of(shard):
            row = finished.result()
            found.append(row)
            out.count(row.status, row.reason)
        out.write_table(table_of(found, FIELDS))

    return Stage(
        f"annotate {name}",
        annotation_folder(name),
        {"method": "image", "hash": HASH, "side": SIDE},
        pool_inputs,
        run_shard,
        columns=column_names(FIELDS),
        ahead=rows,
    )


def image_stages(pool: ImagePool, name: str) -> list[Stage]:
    return [image_stage(pool, name)]


def _row(sample: Sample | BadSample) -> Row:
    if isinstance(sample, BadSample):
        return bad_row(sample)
    try:
        found: ImageNumbers = image_numbers(sample.image)
    except BadImageError as error:
        return Row(sample.uid, sample.key, FAILED, error.reason, str(error))
    return Row(sample.uid, sample.key, values=found)
