//! Which client certificates a handshake accepts: what WebPKI accepts, if it may be used by a
//! client, has one identity, and no list revokes it.
//!
//! Of several lists of one authority WebPKI looks at the first, which may be the older one.
//!
//! WebPKI alone takes a certificate without extended key usage for a client's, so that a server's
//! certificate of an old CA would do.

use std::sync::Arc;

use rustls::{
    CertificateError as Refused, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::{ClientAuth, PeerCertificate, tls::Revoked};

/// WebPKI, and then ours.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub webpki: Arc<dyn ClientCertVerifier>,
    /// Takes a certificate that has no extended key usage at all.
    pub allow_without_eku: bool,
    /// By all lists together.
    pub revoked: Arc<Revoked>,
}

impl ClientCertVerifier for Verifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // First whether the CA stands behind these bytes: strangers do not reach our parser.
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
