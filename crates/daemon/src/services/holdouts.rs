//! The use cases of holdouts: register, read, lower budgets, retire, open, withdraw, rotate the
//! key.

mod registration;
mod rekey;

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use evidenceos_access::Owners;
use evidenceos_access::Principal;
use evidenceos_custody::{Binding, Guests, Items};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    command::{Command, HoldoutCommand, Reply, Stamp},
    holdout::{Holdout, HoldoutStatus, NarrowerBudgets, PrincipalPool},
    id::{Digest, HoldoutId, RequestKey},
    refusal::Refusal,
};

pub use self::{registration::Submission, rekey::Rekeying};
use super::{Catalog, Error, ShownRows, Writer, rows::blocking, writer::unexpected};

/// How often a registration is tried again if another one came in between.
const REGISTRATION_TRIES: usize = 3;

/// The use cases of holdouts.
pub struct Holdouts {
    writer: Arc<Writer>,
    rows: ShownRows,
    catalog: Arc<Catalog>,
    owners: Arc<Owners>,
    guests: Arc<Guests>,
    rekeying: tokio::sync::Mutex<Rekeying>,
}

/// A holdout with its meters, and the caller's own meters.
pub struct ShownHoldout {
    /// The holdout as its row has it.
    pub holdout: Holdout,
    /// What the caller has used of the holdout.
    pub own: PrincipalPool,
    /// Warnings for its custodian.
    pub warnings: Vec<String>,
}

impl From<Holdout> for ShownHoldout {
    fn from(holdout: Holdout) -> Self {
        Self {
            holdout,
            own: PrincipalPool::default(),
            warnings: Vec::new(),
        }
    }
}

impl Holdouts {
    /// Holdouts over a daemon's parts.
    #[must_use]
    pub fn new(
        writer: Arc<Writer>,
        rows: ShownRows,
        catalog: Arc<Catalog>,
        owners: Arc<Owners>,
        guests: Arc<Guests>,
        rekeying: Rekeying,
    ) -> Self {
        Self {
            writer,
            rows,
            catalog,
            owners,
            guests,
            rekeying: tokio::sync::Mutex::new(rekeying),
        }
    }

    /// The id of a holdout given by id or by name, and the hash of its null spec.
    ///
    /// # Errors
    /// `HOLDOUT_NOT_FOUND`.
    pub fn named(&self, name: &str) -> Result<(HoldoutId, Digest), Error> {
        let holdout = self.catalog.find(name)?;
        Ok((holdout.id, holdout.description.null_spec.hash()))
    }

    /// The fixed facts of all holdouts, in the order of registration.
    pub(super) fn all(&self) -> Vec<Arc<Holdout>> {
        self.catalog.all()
    }

    /// Registers a holdout: splits its items, commits to them, stores them encrypted.
    ///
    /// # Errors
    /// If the caller is not an operator, a field breaks a rule, or the items are registered
    /// already.
    pub async fn put(
        self: &Arc<Self>,
        principal: &Principal,
        key: Option<RequestKey>,
        submission: Submission,
    ) -> Result<ShownHoldout, Error> {
        principal.caller.must_operate()?;
        let stamp = key.map(|key| Stamp {
            key,
            fingerprint: submission.fingerprint(&self.owners),
        });
        let submission = Arc::new(submission);
        for _ in 0..REGISTRATION_TRIES {
            let (holdouts, prepared) = (Arc::clone(self), Arc::clone(&submission));
            let (command, warnings) = blocking(move || {
                let others = holdouts.catalog.all();
                prepared.prepare(&holdouts.owners, &holdouts.guests.vault, &others)
            })
            .await?;
            failpoint::pass(Point::HoldoutPutBlobBeforeRow);
            match self.writer.call(principal, stamp, command, None).await {
                Ok(Reply::Holdout(holdout)) => {
                    self.catalog.add(&holdout);
                    return Ok(ShownHoldout {
                        warnings,
                        ..ShownHoldout::from(*holdout)
                    });
                }
                Ok(other) => return Err(unexpected(&other)),
                // Another registration came in between: the comparison does not cover all holdouts.
                Err(Error::Refused(Refusal::HoldoutsChanged)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Refusal::HoldoutsChanged.into())
    }

    /// Retires a holdout: it takes no more claims.
    ///
    /// # Errors
    /// If the caller is not an operator, or the holdout is retired already.
    pub async fn retire(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        name: &str,
        reason: String,
    ) -> Result<ShownHoldout, Error> {
        let holdout = self.catalog.find(name)?.id;
        let reason = or_default(reason, "retired");
        let command = HoldoutCommand::Retire { holdout, reason }.into();
        self.change(principal, stamp, command).await
    }

    /// Withdraws a holdout that was registered by mistake, and deletes its items.
    ///
    /// # Errors
    /// If the caller is not an operator, or the holdout has judged or charged anything.
    pub async fn withdraw(
        self: &Arc<Self>,
        principal: &Principal,
        stamp: Option<Stamp>,
        name: &str,
        reason: String,
    ) -> Result<ShownHoldout, Error> {
        let holdout = self.catalog.find(name)?.id;
        let reason = or_default(reason, "withdrawn");
        let command = HoldoutCommand::Withdraw { holdout, reason }.into();
        let withdrawn = self.change(principal, stamp, command).await?;
        self.catalog.add(&withdrawn.holdout);
        let (id, blob) = (withdrawn.holdout.id, withdrawn.holdout.blob);
        let guests = Arc::clone(&self.guests);
        // The row says that the holdout is withdrawn. If a crash leaves the blob, the next start
        // removes it.
        blocking(move || {
            let forgotten = guests.vault.forget(id, &blob);
            forgotten.map_err(|error| Error::Fault(error.to_string()))
        })
        .await?;
        Ok(withdrawn)
    }

    /// Lowers the budgets of a holdout, or restores them up to the registered maximum.
    ///
    /// # Errors
    /// If the caller is not an operator, or a budget is above the registered one.
    pub async fn set_budgets(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        id: HoldoutId,
        narrower: NarrowerBudgets,
    ) -> Result<Holdout, Error> {
        let holdout = self.by_id(id)?.id;
        let command = HoldoutCommand::SetBudgets { holdout, narrower }.into();
        let changed = self.change(principal, stamp, command).await?;
        Ok(changed.holdout)
    }

    async fn change(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        command: Command,
    ) -> Result<ShownHoldout, Error> {
        match self.writer.call(principal, stamp, command, None).await? {
            Reply::Holdout(holdout) => Ok(ShownHoldout::from(*holdout)),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens a retired holdout and returns its opening; later calls return the same one.
    ///
    /// # Errors
    /// If the caller is not an operator, or the holdout is not retired.
    pub async fn open(
        self: &Arc<Self>,
        principal: &Principal,
        stamp: Option<Stamp>,
        name: &str,
    ) -> Result<Vec<u8>, Error> {
        let fixed = self.catalog.find(name)?;
        let (holdouts, seq) = (Arc::clone(self), fixed.seq);
        let is_opened = move || {
            let row = holdouts.rows.readers.holdout(seq)?;
            Ok(row.is_some_and(|holdout| holdout.status == HoldoutStatus::Opened))
        };
        if !self.rows.read(is_opened).await? {
            let command = HoldoutCommand::Open { holdout: fixed.id }.into();
            let opened = self.change(principal, stamp, command).await?;
            self.catalog.add(&opened.holdout);
        }
        let guests = Arc::clone(&self.guests);
        blocking(move || {
            let read = guests.vault.read(&fixed.blob, Binding::of(&fixed));
            let items = read.map_err(|error| Error::Fault(error.to_string()))?;
            Ok(opening(&fixed, &items))
        })
        .await
    }

    /// A holdout by id or by name.
    ///
    /// # Errors
    /// `HOLDOUT_NOT_FOUND`.
    pub async fn get(
        self: &Arc<Self>,
        principal: &Principal,
        name: &str,
    ) -> Result<ShownHoldout, Error> {
        let (holdouts, principal, name) = (Arc::clone(self), principal.clone(), name.to_owned());
        self.rows
            .read(move || {
                let fixed = holdouts.catalog.find(&name)?;
                holdouts.read(&principal, &fixed)
            })
            .await
    }

    /// At most a page of holdouts from a number on, and the number of the next one if there is one.
    ///
    /// # Errors
    /// If rows cannot be read.
    pub async fn list(
        self: &Arc<Self>,
        principal: &Principal,
        first: u64,
        most: usize,
    ) -> Result<(Vec<ShownHoldout>, Option<u64>), Error> {
        let (holdouts, principal) = (Arc::clone(self), principal.clone());
        self.rows
            .read(move || {
                let all = holdouts.catalog.all();
                let mut shown = all.iter().filter(|holdout| holdout.seq >= first);
                let page = shown.by_ref().take(most);
                let page: Result<_, Error> =
                    page.map(|fixed| holdouts.read(&principal, fixed)).collect();
                Ok((page?, shown.next().map(|next| next.seq)))
            })
            .await
    }

    /// A holdout by its id, in its present state.
    ///
    /// # Errors
    /// `HOLDOUT_NOT_FOUND`.
    pub async fn state_of(self: &Arc<Self>, id: HoldoutId) -> Result<Holdout, Error> {
        let holdouts = Arc::clone(self);
        self.rows
            .read(move || holdouts.row_of(&*holdouts.by_id(id)?))
            .await
    }

    fn by_id(&self, id: HoldoutId) -> Result<Arc<Holdout>, Error> {
        self.catalog.by_id(id).ok_or(Error::Absent {
            code: "HOLDOUT_NOT_FOUND",
            message: "no holdout has this id".into(),
        })
    }

    fn read(&self, principal: &Principal, fixed: &Holdout) -> Result<ShownHoldout, Error> {
        let holdout = self.row_of(fixed)?;
        let own = self.rows.readers.pool(holdout.id, principal.caller.tag)?;
        Ok(ShownHoldout {
            own: own.unwrap_or_default(),
            ..ShownHoldout::from(holdout)
        })
    }

    fn row_of(&self, fixed: &Holdout) -> Result<Holdout, Error> {
        let row = self.rows.readers.holdout(fixed.seq)?;
        row.ok_or_else(|| Error::Fault("a registered holdout has no row".to_owned()))
    }
}

fn or_default(reason: String, default: &str) -> String {
    if reason.is_empty() {
        default.to_owned()
    } else {
        reason
    }
}

/// The opening of a holdout, in the form that `evidenceos verify --opened` reads.
fn opening(holdout: &Holdout, items: &Items) -> Vec<u8> {
    let mut opening = serde_json::json!({
        "format": "evidenceos.opening.v1",
        "holdout_id": holdout.id.to_hex(),
        "secret": hex::encode(items.secret),
        "labels": BASE64_STANDARD.encode(&items.labels),
    });
    if let Some(units) = &items.units {
        opening["units"] = serde_json::json!(units);
    }
    opening.to_string().into_bytes()
}
