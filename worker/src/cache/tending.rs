//! What goes by itself, as users see it and change it.

use std::path::Path;

use pelton_region_format::KeyPattern;

use super::Cache;
use crate::config::host::{Host, PressureGauge};
use crate::config::{ConfigError, check_capacity, check_memory, refuse};
use crate::region::arena::Paging;
use crate::tender::run::budgets;
use crate::tender::{MarksPercent, TenderStatus, Ttls};

/// So much is left for regions at least, whatever the buffers take.
const RESIDENCE_MIN: u64 = 16 << 20;

impl Cache {
    /// What goes by itself, and what has gone so far.
    pub fn tender(&self) -> TenderStatus {
        let tender = &self.core.tender;
        let budgets = budgets(&self.core, &tender.rules());
        let notes = tender.notes().clone();
        TenderStatus {
            running: notes.is_running,
            memory: budgets.memory,
            memory_limit: Host::of_this_process().memory,
            spindles: budgets.spindles,
            pressure_source: PressureGauge::find().source(),
            stalled_percent: notes.stalled_percent,
            last: notes.last,
            sums: notes.sums,
        }
    }

    /// Changes how much memory the cache may use. Buffers keep what they have; regions get more or less. With less,
    /// slices are evicted until the others fit; what is leased stays, and nothing more comes until it fits.
    ///
    /// # Errors
    /// More than there is, or too little beside the buffers: the value and its range.
    pub fn set_memory(&self, bytes: u64) -> Result<(), ConfigError> {
        let core = &self.core;
        let fixed = self.memory_max() - core.budget.counts().residence_max;
        let is_locked = core.budget.paging() == Paging::Locked;
        check_memory(bytes, is_locked, fixed + RESIDENCE_MIN, &Host::of_this_process())?;
        core.budget.resize(bytes - fixed);
        core.tender.poke();
        Ok(())
    }

    /// Changes how many bytes a spindle may hold. With less, slices are flushed until the others fit, and no load comes
    /// until they do.
    ///
    /// # Errors
    /// There is no such spindle, or the value is out of range.
    pub fn set_spindle_capacity(&self, folder: impl AsRef<Path>, bytes: u64) -> Result<(), ConfigError> {
        let folder = folder.as_ref();
        check_capacity(folder, bytes)?;
        let Some(spindle) = self.core.spindles.iter().find(|spindle| spindle.folder == folder) else {
            let folders: Vec<String> =
                self.core.spindles.iter().map(|spindle| spindle.folder.display().to_string()).collect();
            return Err(refuse("spindle", folder.display(), format!("one of {}", folders.join(", "))));
        };
        spindle.room.set_capacity(bytes);
        self.core.tender.poke();
        Ok(())
    }

    /// Changes how long the slices that a pattern matches may be idle. It comes before all that was said so far.
    ///
    /// # Errors
    /// A value is out of range.
    pub fn set_ttls(&self, pattern: &KeyPattern, ttls: Ttls) -> Result<(), ConfigError> {
        let ttls = ttls.check(pattern)?;
        self.core.tender.change(|rules| rules.set_ttls(pattern.clone(), ttls));
        Ok(())
    }

    /// Changes how full memory may get before slices are evicted, and how far that goes.
    ///
    /// # Errors
    /// The marks are out of order.
    pub fn set_memory_marks(&self, marks: MarksPercent) -> Result<(), ConfigError> {
        let marks = marks.check("memory_marks")?;
        self.core.tender.change(|rules| rules.memory = marks);
        Ok(())
    }

    /// Changes how full a spindle may get before slices are flushed, and how far that goes.
    ///
    /// # Errors
    /// The marks are out of order.
    pub fn set_disk_marks(&self, marks: MarksPercent) -> Result<(), ConfigError> {
        let marks = marks.check("disk_marks")?;
        self.core.tender.change(|rules| rules.disks = marks);
        Ok(())
    }
}
