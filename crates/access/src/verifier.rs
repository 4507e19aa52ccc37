//! The client certificates that a handshake accepts: those that WebPKI accepts, if a client may use
//! them, they have one identity, and no list revokes them.
//!
//! Of several lists of one authority, WebPKI checks only the first, which may be the older one.
//!
//! WebPKI alone accepts a certificate without extended key usage for a client, so that a server's
//! certificate of an old CA would pass.

use std::sync::Arc;

use rustls::{
    CertificateError as Refused, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::{ClientAuth, PeerCertificate, tls::Revoked};

/// WebPKI's checks, and then this module's.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub webpki: Arc<dyn ClientCertVerifier>,
    /// Accepts a certificate without any extended key usage.
    pub allow_without_eku: bool,
    /// The certificates that any of the lists revokes.
    pub revoked: Arc<Revoked>,
}

impl ClientCertVerifier for Verifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // The CA must have signed these bytes first: strangers do not reach the parser below.
        let verified = self
            .webpki
            .verify_client_cert(end_entity, intermediates, now)?;
        if self.revoked.covers(end_entity, intermediates) {
            return Err(Refused::Revoked.into());
        }
        let certificate = PeerCertificate::read(end_entity)
            .map_err(|error| Refused::Other(OtherError(Arc::new(error))))?;
        match certificate.client_auth {
            ClientAuth::Allowed => Ok(verified),
            ClientAuth::Unrestricted if self.allow_without_eku => Ok(verified),
            ClientAuth::Unrestricted | ClientAuth::Forbidden => Err(Refused::InvalidPurpose.into()),
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.webpki.requires_raw_public_keys()
    }

    fn offer_client_auth(&self) -> bool {
        self.webpki.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }
}
