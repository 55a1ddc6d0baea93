//! The slices of one load while they are written, side by side.

use pelton::{Cache, Codec, Key, LoadPlan, Parcel, ParcelBuilder, SealedSlice, SliceWriter};

use crate::failure::Failure;

/// A parcel goes off when the next blob would make it larger. A blob that is larger travels alone.
const PARCEL_BYTES: usize = 1 << 20;

/// Deals blobs over slices, one after the other, and gathers those of each slice in parcels.
///
/// Dropping it cancels the load of all of them.
pub(super) struct OpenSlices {
    slices: Vec<(SliceWriter, ParcelBuilder)>,
    next: usize,
    codec: Codec,
}

impl OpenSlices {
    pub(super) fn open(
        cache: &Cache,
        keys: &[Key],
        plan: &LoadPlan,
        codec: Codec,
    ) -> Result<OpenSlices, Failure> {
        let open = |key| match cache.snap(key).open_for_writes(plan.clone()) {
            Ok(writer) => Ok((writer, ParcelBuilder::default())),
            Err(error) => Err(Failure::cache(&error)),
        };
        let slices = keys.iter().map(open).collect::<Result<_, _>>()?;
        Ok(OpenSlices { slices, next: 0, codec })
    }

    /// Deals one blob.
    pub(super) fn push(&mut self, blob: &[u8]) -> Result<(), Failure> {
        let (writer, builder) = &mut self.slices[self.next];
        if !builder.is_empty() && builder.bytes() + blob.len() > PARCEL_BYTES {
            send(writer, builder, self.codec)?;
        }
        builder.push(blob).map_err(|error| Failure::cache(&error))?;
        self.next = (self.next + 1) % self.slices.len();
        Ok(())
    }

    /// Sends what is left, and seals all slices.
    pub(super) fn seal(self) -> Result<Vec<SealedSlice>, Failure> {
        let codec = self.codec;
        let seal = |(writer, mut builder): (SliceWriter, ParcelBuilder)| {
            if !builder.is_empty() {
                send(&writer, &mut builder, codec)?;
            }
            writer.wait_for_writes().map_err(|error| Failure::cache(&error))
        };
        self.slices.into_iter().map(seal).collect()
    }
}

fn send(writer: &SliceWriter, builder: &mut ParcelBuilder, codec: Codec) -> Result<(), Failure> {
    // The next one will be about as large.
    let room = builder.bytes().min(PARCEL_BYTES);
    let full = std::mem::replace(builder, ParcelBuilder::with_capacity(room));
    let parcel: Parcel = full.deflate(codec).map_err(|error| Failure::cache(&error))?;
    writer.queue_parcel(parcel).map_err(|error| Failure::cache(&error))
}
