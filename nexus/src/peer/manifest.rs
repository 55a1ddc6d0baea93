//! What a holder tells of a slice.

use pelton_nexus_proto::messages::{Manifest, Region};
use pelton_nexus_proto::{Limit, Limits};
use pelton_region_format::{ContentId, Fingerprint, Key};
use pelton_worker::{LoadPlan, SealedRegion};

/// The version of the service that is spoken here.
pub(super) const PEER_VERSION: u32 = 1;

/// A slice at a holder: which, and what it consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerManifest {
    key: Key,
    fingerprint: Fingerprint,
    region_count: u32,
    regions: Vec<SealedRegion>,
}

impl PeerManifest {
    /// Takes what a holder has answered. Nothing is believed of it but numbers, which the load compares.
    pub(super) fn of_message(
        key: &Key,
        wanted: Option<Fingerprint>,
        message: Manifest,
        limits: &Limits,
    ) -> Result<PeerManifest, String> {
        if message.version != PEER_VERSION {
            return Err(format!("its version is {}, asked for was {PEER_VERSION}", message.version));
        }
        if message.key != key.to_string() {
            return Err(format!("it is of {:?}", message.key));
        }
        let fingerprint = thirty_two("fingerprint", &message.fingerprint).map(Fingerprint::from_bytes)?;
        if wanted.is_some_and(|wanted| wanted != fingerprint) {
            return Err(format!("it has fingerprint {fingerprint}"));
        }
        let count = message.regions.len() as u64;
        limits.check(Limit::ManifestRegions, count).map_err(|error| error.to_string())?;
        let region = |region: Region| {
            Ok(SealedRegion {
                index: region.index,
                file_bytes: region.file_bytes,
                blob_count: region.blob_count,
                blob_bytes: region.blob_bytes,
                content_id: thirty_two("content id", &region.content_id).map(ContentId::from_bytes)?,
                block_bytes: region.block_bytes,
                body_end: region.body_end,
            })
        };
        let regions = message.regions.into_iter().map(region).collect::<Result<Vec<_>, String>>()?;
        let manifest =
            PeerManifest { key: key.clone(), fingerprint, region_count: message.region_count, regions };
        let sums = (manifest.blob_count(), manifest.blob_bytes());
        if sums != (message.blob_count, message.blob_bytes) {
            let (blobs, bytes) = (message.blob_count, message.blob_bytes);
            return Err(format!(
                "it has {blobs} blobs in {bytes} bytes, its regions {} in {}",
                sums.0, sums.1
            ));
        }
        Ok(manifest)
    }

    /// The slice.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What decided its blobs.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Over how many regions its blobs are dealt.
    pub fn region_count(&self) -> u32 {
        self.region_count
    }

    /// Those with a blob.
    pub fn regions(&self) -> &[SealedRegion] {
        &self.regions
    }

    /// How many bytes its files have.
    pub fn file_bytes(&self) -> u64 {
        sum(&self.regions, |region| region.file_bytes)
    }

    /// How many blobs it has.
    pub fn blob_count(&self) -> u64 {
        sum(&self.regions, |region| region.blob_count)
    }

    /// How many bytes its blobs have.
    pub fn blob_bytes(&self) -> u64 {
        sum(&self.regions, |region| region.blob_bytes)
    }

    /// A load that takes exactly this.
    pub fn plan(&self) -> LoadPlan {
        LoadPlan::of_sealed(self.fingerprint, self.region_count, self.regions.clone())
    }
}

/// What is told of a slice that is here.
pub(super) fn message_of(
    key: &Key,
    fingerprint: Fingerprint,
    region_count: u32,
    regions: &[SealedRegion],
) -> Manifest {
    let region = |region: &SealedRegion| Region {
        index: region.index,
        file_bytes: region.file_bytes,
        blob_count: region.blob_count,
        blob_bytes: region.blob_bytes,
        content_id: region.content_id.as_bytes().to_vec(),
        block_bytes: region.block_bytes,
        body_end: region.body_end,
    };
    Manifest {
        version: PEER_VERSION,
        key: key.to_string(),
        fingerprint: fingerprint.as_bytes().to_vec(),
        region_count,
        regions: regions.iter().map(region).collect(),
        blob_count: sum(regions, |region| region.blob_count),
        blob_bytes: sum(regions, |region| region.blob_bytes),
    }
}

fn sum(regions: &[SealedRegion], of: impl Fn(&SealedRegion) -> u64) -> u64 {
    regions.iter().fold(0, |sum, region| sum.saturating_add(of(region)))
}

fn thirty_two(what: &str, bytes: &[u8]) -> Result<[u8; 32], String> {
    bytes.try_into().map_err(|_| format!("a {what} has {} bytes, expected 32", bytes.len()))
}
