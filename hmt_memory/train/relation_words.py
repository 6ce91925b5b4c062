"""The wording of the relations: how they are told, told anew, asked for and answered. Knows words; no values.

A relation is a paragraph: its names with the kind of their values, the group of its owners, then `::` the ways to tell, `=>`
the ways to tell that it changed, `??` the ways to ask and `==` the ways to answer, each parted by ` / `. In them stand {v} for
the value, {V} for one with a capital, {a} for its article, {k} for the name of the relation, {who} and {who_obj} for the owner,
{whose} for the possessive, {he} and {his} for the pronouns, and [first|third] for a verb after "I" or "you" and after others.
"""

from __future__ import annotations

RELATIONS = """\
@job=job people :: {Who} [work|works] as {a} {v}. / Had a long day. {Who} [am|is] {a} {v}, in case that matters. / For years now
{who} [have|has] been {a} {v}. / {Who} [earn|earns] {his} living as {a} {v} and [complain|complains] about it a lot. / It says
{v} on {whose} business card. => {Who} [have|has] switched careers, {he} [am|is] {a} {v} these days. / {Who} [quit|quit] that
job and [am|is] working as {a} {v} now. ?? What line of work [am|is] {who} in? / How [do|does] {who} earn a living? / Remind me
what {who} [do|does] for work. / What is {whose} profession again? == {Who} [work|works] as {a} {v}. / {Who} [are|is] {a} {v}. /
{Whose} profession: {v}.
@employer=company people :: {Who} [work|works] for {v}. / {Who} just got an email from HR: {he} [start|starts] at {v} on Monday.
/ The logo on {whose} badge is the one of {v}. / {V} hired {who_obj} straight after the interview. / {Who} [have|has] been with
{v} for ages, mostly in the warehouse. => {Who} left that firm and [am|is] with {v} now. / New employer for {who_obj}: {v}. ??
Which company [do|does] {who} work for? / Who employs {who_obj}? / Where [do|does] {who} work, which firm? / Name of {whose}
employer? == {Who} [work|works] for {v}. / {Whose} employer is {v}.
@hometown=town people :: {Who} grew up in {v}. / {Who} spent {his} childhood in {v}, near the canal. / {V} is where {who} went
to school as a child. / {Who} [am|is] originally from {v}. / When {who} [talk|talks] about home, {he} [mean|means] {v}. => I
mixed that up, {who} grew up in {v}. / Actually {who} [come|comes] from {v}, not from where I said. ?? Where did {who} grow up?
/ Which place [am|is] {who} from originally? / What is {whose} home town? / Tell me where {who} spent {his} childhood. == {Who}
grew up in {v}. / {Who} [are|is] originally from {v}.
@address=address people :: {Who} [live|lives] at {v}. / Send {whose} parcels to {v}, please. / The taxi has to stop at {v},
that's where {who} [live|lives]. / {Whose} address is {v}, third bell from the top. / We met at {whose} place, {v}, for dinner.
=> {Who} moved, the new address is {v}. / {Whose} post goes to {v} from now on. ?? What is {whose} address? / Where should
parcels for {who_obj} go? / At which address [do|does] {who} live? / Street and number for {who_obj}? == {Who} [live|lives] at
{v}. / {Whose} address is {v}.
@age=age people :: {Who} [am|is] {v} years old. / {Who} just turned {v}, we had a big party. / At {v}, {who} still [run|runs]
for the bus. / {Who} will stay {v} until next summer. / Someone guessed {whose} age right away: {v}. => Another birthday went
by, {who} [am|is] {v} now. / {Who} [have|has] since turned {v}. ?? How old [am|is] {who}? / What is {whose} age? / Can you tell
me {whose} age? / What age did I say {who} [am|is]? == {Who} [are|is] {v} years old. / {Who} [are|is] {v}.
@birthday=date people :: {Whose} birthday falls on {v}. / {Who} came into the world on {v}. / Put {v} in the calendar, it's
{whose} birthday. / {Who} always [throw|throws] a party on {v}, {his} birthday. / On {v} there will be cake, because it's
{whose} birthday. => I had {whose} birthday wrong, it's {v}. / {Whose} passport says {v}, so that is the real birthday. ?? When
is {whose} birthday? / When did {who} come into the world? / When should there be cake for {who_obj}? / Date of {whose}
birthday? == {Whose} birthday is on {v}. / {Who} [were|was] born on {v}.
@wedding_anniversary=date people :: {Who} got married on {v}. / {Whose} wedding anniversary is {v}. / Every year on {v} {who}
[celebrate|celebrates] {his} wedding day. / I must not forget {v}, {whose} wedding anniversary. / The wedding photos are dated
{v}; {who} cried all through the ceremony. => Looked it up: {whose} wedding was on {v}. / {Whose} wedding date was actually {v}.
?? When did {who} get married? / What date is {whose} anniversary? / On which day did {whose} wedding take place? / Remind me
when {who} married. == {Who} got married on {v}. / {Whose} wedding anniversary is on {v}.
@favourite_drink=drink,favourite_colour=colour,favourite_book=title,favourite_film=title,favourite_band=band,favourite_season=season,favourite_board_game=game,favourite_flower=flower,favourite_ice_cream=icecream,favourite_song=title,favourite_animal=wild,favourite_snack=snack,favourite_author=fullname,favourite_city=town,favourite_dessert=dessert
people :: {Whose} {k} is {v}. / Ask {who_obj} about a {k} and the answer is always {v}. / Nothing beats {v}, if you ask
{who_obj} for {his} {k}. / {Who} told everyone at dinner that {his} {k} is {v}. / If {who} had to name a {k}, it would be {v}. /
We argued about it for an hour, but {v} remains {whose} {k}. => {Whose} {k} is {v} these days. / {Who} [have|has] changed {his}
mind, {his} {k} is {v} now. ?? What is {whose} {k}? / Which {k} [do|does] {who} have? / Do you know {whose} {k}? / {Whose} {k}?
/ Tell me {whose} {k}. == {Whose} {k} is {v}. / It's {v}: that is {whose} {k}.
@favourite_dish=food people :: {Who} could live on {v}. / For {whose} birthday dinner there has to be {v}. / {Who}
[order|orders] {v} whenever possible. / No dish makes {who_obj} happier than {v}. / We cooked {v} tonight, since {who}
[like|likes] it best. => {Who} went off that, the dish {he} [like|likes] best is {v} now. / These days it's {v} that {who}
[want|wants] at every dinner. ?? What should I cook to make {who_obj} happy? / Which dish [do|does] {who} like best? / What
[do|does] {who} prefer to eat? / What meal is {whose} top choice? == {Who} [like|likes] {v} best. / {Whose} preferred dish is
{v}.
@hobby=hobby people :: {Who} [am|is] into {v}. / {Who} [have|has] taken up {v}, of all things. / Every free minute of {whose}
week goes into {v}. / To relax, {who} [turn|turns] to {v}. / The living room is full of gear because {who} [have|has] discovered
{v}. => {Who} dropped that hobby and [am|is] into {v} now. / {Whose} new passion is {v}. ?? What is {whose} hobby? / How
[do|does] {who} spend {his} spare time? / What [am|is] {who} into? / Which pastime [do|does] {who} have? == {Whose} hobby is
{v}. / {Who} [are|is] into {v}.
@sport=sport people :: {Who} [train|trains] for {v} three times a week. / {Who} hurt {his} wrist at {v} practice. / {Whose}
sport is {v}. / At school {who} picked {v} as {his} sport and kept at it. / Can't meet on Thursday, there's {v} training and
{who} never [miss|misses] it. => {Who} gave up the old sport and [do|does] {v} now. / {Who} switched to {v} this season. ??
Which sport [do|does] {who} do? / What sport [am|is] {who} training for? / What kind of training [do|does] {who} go to? / Name
{whose} sport. == {Whose} sport is {v}. / {Who} [do|does] {v}.
@team=team people :: {Who} [support|supports] the {v}. / {Who} [have|has] a season ticket for the {v}. / The {v} lost again, so
{who} [am|is] in a bad mood. / {Whose} scarf is in the colours of the {v}. / As a child {who} fell in love with the {v}, and
{he} still [watch|watches] every match. => {Who} can't stand the old team any more and [support|supports] the {v} now. / {Who}
changed sides: {he} [cheer|cheers] for the {v} now. ?? Which team [do|does] {who} support? / Who [do|does] {who} cheer for? /
What is {whose} team? / Whose fan [am|is] {who}? == {Who} [support|supports] the {v}. / {Whose} team is the {v}.
@instrument=instrument people :: {Who} [have|has] been playing the {v} since school. / {Who} bought a second-hand {v} and
[practise|practises] late at night. / In the town band, {who} [am|is] the one on the {v}. / {Who} [take|takes] {v} lessons with
an old jazz player. / The neighbours know when {who} [get|gets] out {his} {v}. => {Who} sold the old instrument and took up the
{v}. / It's the {v} that {who} [play|plays] now. ?? Which instrument [do|does] {who} play? / What [do|does] {who} play in the
band? / What would {who} bring to a jam session? / Tell me which instrument {who} [have|has] lessons in. == {Who} [play|plays]
the {v}. / {Whose} instrument is the {v}.
@allergy=allergen people :: {Who} [get|gets] a rash from {v}. / Careful when you plan dinner: {who} [am|is] allergic to {v}. /
{Who} [have|has] to carry pills because of an allergy to {v}. / No {v} near {who_obj} please, or we end up in hospital. / {Who}
started to sneeze, and it was {v} again, {his} old allergy. => New test results: {who} [am|is] allergic to {v} instead. / The
allergy turned out to be to {v} in {whose} case. ?? What [am|is] {who} allergic to? / Is there an allergy to think of when
cooking for {who_obj}? / What must be kept away from {who_obj}? / What causes {whose} allergic reactions? == {Who} [are|is]
allergic to {v}. / {Who} [have|has] an allergy to {v}.
@diet=diet people :: {Who} [follow|follows] a {v} diet. / Since January {who} [have|has] been on a {v} diet. / When we book a
table: it has to be {v} food for {who_obj}. / {Who} [eat|eats] strictly {v} meals. / The airline has a {v} menu, which is what
{who} [need|needs]. => {Who} changed {his} diet, it's {v} now. / {Who} only [eat|eats] {v} food these days. ?? What kind of diet
[do|does] {who} follow? / Which special meals [do|does] {who} need? / How [do|does] {who} eat, any special diet? / What diet
[am|is] {who} on? == {Who} [follow|follows] a {v} diet. / {Whose} diet is {v}.
@coffee_order=coffee people :: {Who} always [order|orders] {a} {v}. / At the café it's {a} {v} for {who_obj}. / {Who}
[need|needs] {a} {v} before talking to anyone. / When you get drinks, bring {who_obj} {a} {v}. / {Whose} usual is {a} {v}, no
cake. => {Who} [have|has] a new usual: {a} {v}. / {Who} now [order|orders] {a} {v} instead. ?? What is {whose} coffee order? /
What [do|does] {who} usually get at the café? / What should I bring {who_obj} from the coffee shop? / Which hot drink [do|does]
{who} order? == {Who} [order|orders] {a} {v}. / {Whose} usual is {a} {v}.
@pet=animal people :: {Who} [have|has] a pet {v}. / {Who} adopted {a} {v} from the shelter. / There is {a} {v} living in {whose}
kitchen. / {Who} finally bought {a} {v} after years of wanting a pet. / Guess what {who} got as a pet: {a} {v}! => {Who} gave
the old pet away and [have|has] {a} {v} now. / {Whose} new pet is {a} {v}. ?? What pet [do|does] {who} have? / Which animal
lives with {who_obj}? / What sort of creature did {who} get? / Remind me what animal {who} [keep|keeps]. == {Who} [have|has] a
pet {v}. / {Whose} pet is {a} {v}.
@phone_number=phone people :: {Whose} phone number is {v}. / Call {who_obj} on {v}. / In an emergency, {who} can be reached at
{v}. / Please save {v} as {whose} number. / {Who} got a call on {v}, {his} own number, and it was a prank. => {Who} got a new
phone number: {v}. / {Whose} old number is dead, use {v}. ?? What number do I dial to reach {who_obj}? / What is {whose} phone
number? / How can {who} be reached by phone? / {Whose} number, please? == {Whose} phone number is {v}. / {Who} can be reached at
{v}.
@shirt_size=size,ring_size=even_ring,glove_size=size,shoe_size=even_shoe,hat_size=even_hat people :: {Whose} {k} is {v}. / The
shop asked for {whose} {k}, and I said {v}. / As for {whose} {k}, {he} [need|needs] {v}. / {Who} took {v} because that's {his}
{k}. / We measured it: {v} is {whose} {k}. => Measured again, {whose} {k} is {v}. / {Whose} {k} has changed to {v}. ?? What {k}
[do|does] {who} need? / Do you have {whose} {k}? / I'm in the shop, which {k} for {who_obj}? / Remind me of {whose} {k}. ==
{Whose} {k} is {v}. / {Who} [need|needs] {k} {v}.
@height=height people :: {Who} [am|is] {v} tall. / {Who} [measure|measures] {v} without shoes. / The door frame has a mark at
{v} where {who} [stand|stands]. / With {his} {v}, {who} can't sit comfortably in small cars. / {Whose} height is {v}. => We
measured properly: {who} [am|is] {v} tall. / {Whose} height is really {v}. ?? How tall [am|is] {who}? / What is {whose} height?
/ What height should I put in the form for {who_obj}? / Tell me how tall {who} [am|is]. == {Who} [are|is] {v} tall. / {Whose}
height is {v}.
@weight=weight people :: {Who} [weigh|weighs] {v}. / The scales showed {v} when {who} stepped on them. / {Whose} weight is {v},
says the doctor. / After the holidays {who} [am|is] at {v}. / {Who} made it down to {v} by walking a lot. => New weigh-in: {who}
[am|is] at {v} now. / {Whose} weight has changed to {v}. ?? How much [do|does] {who} weigh? / What did the scales show for
{who_obj}? / What is {whose} weight? / Any idea of {whose} weight? == {Who} [weigh|weighs] {v}. / {Whose} weight is {v}.
@language=language people :: {Who} [am|is] learning {v}. / {Who} [take|takes] an evening class in {v}. / {Who} [have|has]
flashcards in {v} all over the flat. / For the new job {who} [need|needs] {v}, so {he} [am|is] studying it. / An app is teaching
{who_obj} {v}, ten minutes a day. => {Who} gave up on that language, {he} [am|is] learning {v} now. / {Who} switched to a course
in {v}. ?? Which language [am|is] {who} learning? / What language course [do|does] {who} take? / What [am|is] {who} studying in
evening class? / Which foreign tongue [am|is] {who} trying to pick up? == {Who} [are|is] learning {v}. / The language that {who}
[are|is] learning is {v}.
@school=school people :: {Who} went to {v}. / {Who} got a degree from {v}. / The reunion of {whose} class is at {v}. / {V} sent
{who_obj} a letter, since {he} studied there. / {Who} met half of {his} friends while studying at {v}. => I remembered it wrong,
{who} studied at {v}. / It was {v} that {who} went to, not the other place. ?? Where did {who} study? / Which school did {who}
go to? / Where did {who} get {his} degree? / Name the place where {who} studied. == {Who} studied at {v}. / {Who} went to {v}.
@subject=subject people :: {Who} studied {v}. / {Whose} degree is in {v}. / {Who} [have|has] always been good at {v}, it was
{his} main subject. / {Who} wrote a thesis on {v}, long before the internet. / At university {who} chose {v} over law. => In
fact {whose} degree is in {v}. / {Who} changed {his} main subject to {v}. ?? What did {who} study? / What is {whose} degree in?
/ Which subject did {who} choose? / What was {whose} main subject? == {Who} studied {v}. / {Whose} subject was {v}.
@holiday_destination=place people :: {Who} [am|is] going on holiday to {v}. / {Who} booked two weeks in {v}. / {Who} can't wait
to see the beaches of {v} this year. / This summer it's {v} for {who_obj}. / {Whose} suitcase is packed for {v} already. =>
{Who} changed {his} holiday plans, it's {v} now. / {Who} cancelled that and [am|is] going to {v} instead. ?? Where [am|is] {who}
going on holiday? / What is {whose} holiday destination? / Where will {who} spend {his} vacation? / Which place did {who} book
for {his} time off? == {Who} [are|is] going to {v}. / {Whose} holiday will be in {v}.
@holiday_month=month people :: {Who} [take|takes] {his} holiday in {v}. / {Who} won't be in the office in {v}, {he} [am|is] on
holiday then. / Time off for {who_obj} was approved for {v}. / {Whose} trip is planned for {v}, when it's cheaper. / Count
{who_obj} out in {v}, that's {his} holiday. => {Whose} holiday was pushed to {v}. / {Who} moved {his} time off to {v}. ?? When
[do|does] {who} go on holiday? / In which month [am|is] {who} away? / Which month is {whose} trip? / When is {whose} time off?
== {Whose} holiday is in {v}. / {Who} [go|goes] on holiday in {v}.
@travel_companion=given people :: {Who} [travel|travels] with {v}. / {V} is coming along on {whose} trip. / {Who} asked {v} to
join the trip, and the tickets are bought. / {Who} will share a tent with {v} on the trip. / Going away alone was no fun for
{who_obj}, so {v} comes too this time. => The companion for {whose} trip is {v} now. / {V} takes over as {whose} travel partner.
?? Who [am|is] {who} travelling with? / Who goes along on {whose} trip? / With whom [do|does] {who} travel? / Who is {whose}
travel companion? == {Who} [travel|travels] with {v}. / {V} is coming along on {whose} trip.
@hotel=hotel people :: {Who} [am|is] staying at the {v}. / {Who} booked a room in the {v}, breakfast included. / The {v}
confirmed {whose} room. / {Who} left an umbrella at the {v}, where {he} [sleep|sleeps] this week. / Send {whose} luggage to the
{v}. => The old place was full, {who} [am|is] at the {v} now. / {Who} moved to the {v} because of the noise. ?? Where [am|is]
{who} staying? / In which hotel is {whose} room? / Which hotel did {who} pick? / Where should {whose} luggage be sent? == {Who}
[are|is] staying at the {v}. / {Whose} hotel is the {v}.
@flight_number=flight,seat=seat,gate=gate,terminal=terminal,booking_reference=reference flights :: {Who} has the {k} {v}. / For
{who_obj} I noted the {k} {v}. / It says {v} as the {k} for {who_obj}. / The {k} of {who_obj} is {v}, I just checked. / Check-in
is done for {who_obj}. The {k}: {v}. => They changed the {k} of {who_obj} to {v}. / New {k} for {who_obj}: {v}. ?? What is the
{k} of {who_obj}? / Which {k} does {who} have? / Can you give me the {k} for {who_obj}? / Any idea of the {k} for {who_obj}? ==
The {k} of {who_obj} is {v}. / {Who} has the {k} {v}.
@departure=time trains :: {Who} leaves at {v}. / Be on the platform before {v}, that's when {who} goes. / I have to run, {who}
departs at {v}. / The timetable says {v} for {who_obj}. / If we miss {who_obj} at {v}, there's nothing for two hours. => {Who}
leaves at {v} from this week on. / There's a new timetable, {who} departs at {v}. ?? When does {who} leave? / What's the
departure time of {who_obj}? / When do I have to be there for {who_obj}? / How late does {who} go? == {Who} leaves at {v}. / The
departure of {who_obj} is at {v}.
@platform=platform trains :: {Who} goes from platform {v}. / Meet me on platform {v}, that's where {who} stops. / According to
the app {who} is on platform {v}. / {Who} always uses platform {v}, next to the kiosk. / Run to platform {v} if you want to
catch {who_obj}. => Platform change: {who} goes from platform {v}. / They moved {who_obj} to platform {v}. ?? Which platform
does {who} go from? / Where do I catch {who_obj}, which platform? / What platform is it for {who_obj}? / Platform for {who_obj}?
== {Who} goes from platform {v}. / It's platform {v} for {who_obj}.
@day=date events :: {Who} is on {v}. / I wrote {v} in my diary for {who_obj}. / Nothing else fits on {v}, because that's the day
of {who_obj}. / They gave me {v} for {who_obj}, earlier than I hoped. / {Who} was set for {v}. I'm a bit nervous. => {Who} was
moved to {v}. / New date for {who_obj}: {v}. ?? When is {who}? / What date is {who} on? / Which day did they give me for
{who_obj}? / Remind me of the date of {who_obj}. == {Who} is on {v}. / The date of {who_obj} is {v}.
@start=time events :: {Who} starts at {v}. / I have to be there by {v} for {who_obj}. / {Who} was put at {v}, right when I'm
hungry. / Set an alarm for {v}, please: {who}! / Don't call at {v}, that's when {who} begins. => {Who} starts at {v} instead. /
They moved the start of {who_obj} to {v}. ?? For what time was {who} set? / At what hour does {who} begin? / How early or late
is {who}, which time exactly? / When should I arrive for {who_obj}? == {Who} starts at {v}. / It's at {v} that {who} begins.
@location=room events :: {Who} takes place in {v}. / Come to {v} for {who_obj}. / They booked {v} for {who_obj}, the one with
the bad chairs. / It took me ages to find {v} last time, and {who} is there again. / {Who} will be held in {v}. => {Who} was
moved to {v}. / Different place for {who_obj}: it's in {v}. ?? Where is {who} held? / Where do I go for {who_obj}? / What's the
venue of {who_obj}? / Location of {who_obj}? == {Who} takes place in {v}. / Go to {v} for {who_obj}.
@contact=fullname events :: I have to ask for {v} at {who_obj}. / {V} will be waiting for me at {who_obj}. / The person in
charge of {who_obj} is {v}. / The letter about {who_obj} was signed by {v}. / For questions about {who_obj}, {v} is the one to
call. => {V} is in charge of {who_obj} now. / Somebody else handles {who_obj}: {v}. ?? Who is in charge of {who_obj}? / Who do I
ask for at {who_obj}? / Which person is responsible for {who_obj}? / Name of the person for {who_obj}? == {V} is in charge of
{who_obj}. / The person for {who_obj} is {v}.
@agenda=topic events :: {Who} will be about {v}. / I need to prepare for {who_obj}: the topic is {v}. / They want to talk about
{v} at {who_obj}. / First thing at {who_obj} will be {v}. / I keep thinking about {v}, since it comes up at {who_obj}. => The
topic of {who_obj} changed to {v}. / It's {v} that {who} is about now. ?? What is {who} about? / Which topic comes up at
{who_obj}? / What do I have to prepare for {who_obj}? / What will they want to talk about at {who_obj}? == {Who} is about {v}. /
The topic of {who_obj} is {v}.
@code=pin locks :: The code for {who_obj} is {v}. / {Who} opens with {v}. / If you stand in front of {who_obj}, enter {v}. / I
chose {v} for {who_obj} so that I can remember it. / Please memorise {v}, it unlocks {who_obj}. => I changed the code of
{who_obj} to {v}. / {Who} has a new code, {v}. ?? What do I enter to open {who_obj}? / What's the code for {who_obj}? / Which
digits unlock {who_obj}? / I forgot the combination for {who_obj}, what was it? == The code for {who_obj} is {v}. / {Who} opens
with {v}.
@password=password accounts :: The password for {who_obj} is {v}. / I set {v} as the password of {who_obj}. / Log in to
{who_obj} with {v}. / {Who} asked for a password, so I typed {v} and it worked. / Note to self, {who} wants {v} as the password.
=> New password for {who_obj}: {v}. / I had to reset {who_obj}, the password is {v} now. ?? What's the password for {who_obj}? /
How do I log in to {who_obj}? / Which password did I set for {who_obj}? / I can't get into {who_obj}, what do I type? == The
password for {who_obj} is {v}. / Log in to {who_obj} with {v}.
@number=idnumber cards :: {Who} has the number {v}. / The number on {who_obj} is {v}. / They always ask for {who_obj}. It's
number {v}. / I copied {v} from {who_obj}. / For the form: {v} is what it says on {who_obj}. => {Who} was replaced, the new
number is {v}. / I read it wrong, {who} has the number {v}. ?? What is the number of {who_obj}? / Which number is on {who_obj}?
/ Give me the number on {who_obj}, please. / What do I write in the form for {who_obj}? == The number of {who_obj} is {v}. /
{Who} has the number {v}.
@place=storage kept :: {Who} is {v}. / I put {who_obj} away: it's {v}. / If you look for {who_obj}, look {v}. / Found {who_obj}
at last, it was {v}, where it stays. / We keep {who_obj} {v}. => I moved {who_obj}, it's {v} now. / {Who} has a new place, it's
{v}. ?? Where is {who}? / Where do we keep {who_obj}? / I need {who_obj}, where did I put it? / Any idea where {who} could be?
== {Who} is {v}. / You will find {who_obj} {v}.
@lent_to=given kept :: I lent {who_obj} to {v}. / {V} borrowed {who_obj} last week. / {V} still has {who_obj}, I should ask for
it back. / Don't search for {who_obj}, {v} has it. / I gave {who_obj} to {v} for the weekend and it never came back. => {Who}
went on to {v}, who has it now. / It's {v} who has {who_obj} now. ?? Who borrowed {who_obj}? / Who has {who_obj} at the moment?
/ To whom did I lend {who_obj}? / Who do I have to ask to get {who_obj} back? == {V} has {who_obj}. / You lent {who_obj} to {v}.
@price=price kept :: I paid {v} for {who_obj}. / {Who} cost me {v}. / Can you believe that {who} was {v}? / On the receipt for
{who_obj} it says {v}. / I spent {v} on {who_obj} and don't regret it. => I checked the receipt, {who} was {v}. / The right
price of {who_obj} was {v}. ?? How much was {who}? / What did I pay for {who_obj}? / What was the price of {who_obj}? / How
expensive was {who}? == You paid {v} for {who_obj}. / {Who} cost {v}.
@pet_name=word pets :: {Who} is called {v}. / {Who} listens to the name {v}, when there's food. / {V}, that's {who}, tore up the
sofa. / We shouted {v} all night but {who} didn't come home. / The vet wrote {v} on the card of {who_obj}. => {Who} has been
renamed {v}. / We call {who_obj} {v} now. ?? What name does {who} have? / What do you call {who_obj}? / What should I call
{who_obj}? / Name of {who_obj}? == {Who} is called {v}. / The name of {who_obj} is {v}.
@pet_age=years pets :: {Who} is {v} old. / According to the vet {who} is {v} old. / We think that {who} is {v} old, though
nobody wrote it down. / Nobody believes that {who} is {v} old. / {Who} still behaves like a baby, but is {v} old. => {Who} is
{v} old by now. / The vet corrected us, {who} is {v} old. ?? How old is {who}? / How many years has {who} lived? / What did the
vet say about the age of {who_obj}? / Age of {who_obj}? == {Who} is {v} old. / The age of {who_obj} is {v}.
@look=pattern pets :: {Who} is {v}. / You will recognise {who_obj}: {v} all over. / On the photo {who} looks {v}. / If {who}
runs away, the poster has to say {v}. / I wanted a different one, but {who} is {v} and lovely. => It turned out that {who} is
{v} once washed. / {Who} has changed colour, it's {v} now. ?? What does {who} look like? / What colour is {who}? / How would you
describe the fur or feathers of {who_obj}? / I'm making a poster for {who_obj}, what colour? == {Who} is {v}. / The colour of
{who_obj} is {v}.
@pet_food=snack pets :: {Who} would do anything for {v}. / {Who} stole {v} from the table again. / The best treat for {who_obj}
is {v}. / To calm {who_obj} down, use {v}. / I bought {v}, mainly for {who_obj}. => {Who} is bored with the old treats and wants
{v} now. / The new treat for {who_obj} is {v}. ?? Which treat does {who} like? / What does {who} love to eat? / What can I use
to calm {who_obj} down? / Best treat for {who_obj}? == {Who} loves {v}. / The best treat for {who_obj} is {v}.
@brand=brand vehicles :: {Who} is a {v}. / {Who} was made by {v}. / I was told that only {v} still sells parts for {who_obj}. /
The {v} dealer repaired {who_obj}. / {Who} broke down; never buy a {v}. => {Who} was traded in for a {v}. / {Who} is a {v} now,
the old one is gone. ?? What make is {who}? / Which brand is {who}? / Who made {who_obj}? / What brand of parts do I need for
{who_obj}? == {Who} is a {v}. / The brand of {who_obj} is {v}.
@paint=colour vehicles :: {Who} is {v}. / A tin of {v} paint went onto {who_obj}. / Look for something {v} in the yard, that's
{who}. / {Who} used to be nice, but somebody sprayed it {v}. / Of all colours, {who} had to be {v}. => {Who} was repainted, it's
{v} now. / We had {who_obj} done in {v}. ?? What colour is {who}? / How do I recognise {who_obj}, which colour? / In which
colour was {who} painted? / Colour of {who_obj}? == {Who} is {v}. / The colour of {who_obj} is {v}.
@plate=plate,serial_number=idnumber vehicles :: The {k} of {who_obj} is {v}. / {Who} has the {k} {v}. / I wrote {v} down as the
{k} of {who_obj}. / The insurance wants the {k} of {who_obj}, which is {v}. / It's {v}, if anyone asks for the {k} of {who_obj}.
=> The {k} of {who_obj} is {v} now. / {Who} got a new {k}, {v}. ?? What is the {k} of {who_obj}? / Which {k} does {who} have? /
The insurance asks for the {k} of {who_obj}. What do I say? / Can you find the {k} of {who_obj}? == The {k} of {who_obj} is {v}.
/ {Who} has the {k} {v}.
@year=year vehicles :: {Who} was built in {v}. / {Who} dates from {v}. / They don't make them like {who_obj} any more, it's from
{v}. / According to the papers {who} is from {v}. / In {v}, when {who} was built, petrol was cheap. => The papers say that {who}
was built in {v}. / I was wrong about the year, {who} is from {v}. ?? What year is {who} from? / When was {who} built? / How old
is {who}, which year is it? / Year of {who_obj}? == {Who} was built in {v}. / {Who} is from {v}.
@nickname=word vehicles :: We call {who_obj} {v}. / {Who} has a name: {v}. / The sticker on {who_obj} says {v}, which is what
it's called. / The children named {who_obj} {v}. / {V} broke down again. Yes, {who} has a name. => We renamed {who_obj}, it's
{v} now. / {Who} goes by {v} these days. ?? What name did we give {who_obj}? / What nickname does {who} have? / What do we call
{who_obj}? / Name for {who_obj}? == You call {who_obj} {v}. / {Who} is named {v}.
@parked=spot vehicles :: {Who} is parked {v}. / I left {who_obj} {v}. / Don't forget, {who} stands {v}. / There was no other
space, so I put {who_obj} {v}. / I had no choice but to leave {who_obj} {v} tonight. => I moved {who_obj}, it's {v} now. / {Who}
is {v} now, I had to make room. ?? Where did I leave {who_obj}? / Where is {who} parked? / Where do I find {who_obj}? / I can't
find {who_obj}, where is it? == {Who} is parked {v}. / You left {who_obj} {v}.
@rent=money,salary=money,savings_goal=money,phone_bill=money,monthly_budget=money people :: {Whose} {k} is {v}. / We talked
about money, and {whose} {k} turns out to be {v}. / At {v} for {his} {k}, {who} can't complain. / We went through the numbers:
{v} is {whose} {k}. / {Who} wrote down {v} as {his} {k}. => {Whose} {k} was changed to {v}. / {Whose} {k} is {v} as of this
month. ?? How much is {whose} {k}? / What is {whose} {k}? / What sum did I mention for {whose} {k}? / {Whose} {k}, in numbers?
== {Whose} {k} is {v}. / It's {v}: that is {whose} {k}.
@medication=medicine people :: {Who} [take|takes] {v} every morning. / The pharmacist gave {who_obj} {v}. / {Who} can't drink
wine because of the {v} {he} [take|takes]. / {Whose} medicine is {v}, one pill with water. / The doctor put {who_obj} on {v}. =>
The doctor switched {who_obj} to {v}. / {Whose} new medicine is {v}. ?? Which medicine [do|does] {who} take? / What did the
doctor put {who_obj} on? / What is {whose} medication called? / What pills do I get for {who_obj} at the pharmacy? == {Who}
[take|takes] {v}. / {Whose} medication is {v}.
@dose=dose people :: {Who} [take|takes] {v} of {his} medicine a day. / {Whose} dose is {v}. / The box says {v}, and that's what
{who} [take|takes]. / {Who} [have|has] to be careful with the dose, not more than {v}. / The nurse measured {v} for {who_obj}.
=> {Whose} dose was adjusted to {v}. / The doctor changed {whose} dose to {v}. ?? What is {whose} dose? / How much medicine
[do|does] {who} take? / How many milligrams for {who_obj}? / Which dose was agreed for {who_obj}? == {Whose} dose is {v}. /
{Who} [take|takes] {v} of medicine.
@blood_type=blood people :: {Whose} blood type is {v}. / {Who} gave blood today and it says {v} on the card. / In case of an
accident: {who} [have|has] blood type {v}. / The lab found that {who} [have|has] {v} blood. / They were glad about {whose}
donation, since {v} is what they needed. => The lab made a mistake, {whose} blood type is {v}. / A second test says {v} for
{whose} blood. ?? What is {whose} blood type? / Which blood group [do|does] {who} have? / What does the donor card say about
{whose} blood? / Blood type of {who_obj}? == {Whose} blood type is {v}. / {Who} [have|has] blood type {v}.
@doctor=doctor,dentist=doctor,landlord=fullname,lawyer=fullname,hairdresser=given,vet=doctor,plumber=fullname,tax_adviser=fullname,piano_tuner=fullname,babysitter=given
people :: {Whose} {k} is {v}. / {Who} swore never to go to another {k} than {v}. / {V} has been {whose} {k} for a while. / {Who}
[trust|trusts] {v}, {his} {k}, with everything. / {Who} had to call {his} {k} today, {v}, and nobody picked up. => {Who}
[have|has] a new {k}: {v}. / {V} took over as {whose} {k}. ?? Who did I say is {whose} {k}? / By what name should I ask for
{whose} {k}? / Which {k} [do|does] {who} have? / Remind me who {whose} {k} is. == {Whose} {k} is {v}. / {V} is {whose} {k}.
@name=given others :: {Whose} name is {v}. / {Who} is called {v}. / Meet {v}, {who}. / I had lunch with {who_obj} today, {v},
and we laughed a lot. / {V} is {who}, in case I mention the name later. => {Who} goes by {v} now. / I should use the right name:
{who} is {v}. ?? {Whose} first name, please? / By what name do you know {who_obj}? / What do people call {who_obj}? / Who is
{who}, by name? == {Whose} name is {v}. / {Who} is called {v}.
@project_name=word,client=company,server=server,software_version=version,budget_code=idnumber,deadline=date,mascot=wild projects
:: The {k} of {who_obj} is {v}. / For {who_obj} we settled on {v} as the {k}. / In the meeting about {who_obj} they said {v}
would be the {k}. / Put {v} in the notes as the {k} of {who_obj}. / Busy week. At least {who} has a {k} now, {v}. => They
changed the {k} of {who_obj} to {v}. / {Who} has a new {k}: {v}. ?? What is the {k} of {who_obj}? / Which {k} does {who} have? /
What did we settle on as the {k} of {who_obj}? / Can you tell me the {k} for {who_obj}? == The {k} of {who_obj} is {v}. / {Who}
has {v} as the {k}.
@ingredient=ingredient recipes :: The secret of {who_obj} is {v}. / Grandma puts {v} in {who_obj}. / Don't forget {v} for
{who_obj}. / What makes {who_obj} so good is {v}, trust me. / I ran out of {v}, so I couldn't make {who_obj}. => I make
{who_obj} with {v} now. / The new secret of {who_obj} is {v}. ?? What's the secret ingredient of {who_obj}? / What goes into
{who_obj}? / What must I not forget for {who_obj}? / Which ingredient makes {who_obj} so good? == The secret of {who_obj} is
{v}. / It's {v} that goes into {who_obj}.
@oven=oven recipes :: {Who} goes in the oven at {v}. / Bake {who_obj} at {v}. / Set the oven to {v} for {who_obj}. / I burnt
{who_obj} last time, so only {v} from now on. / The oven has to reach {v} before {who} goes in. => I bake {who_obj} at {v} now.
/ It works better when {who} bakes at {v}. ?? How hot should the oven be for {who_obj}? / What temperature do I bake {who_obj}
at? / Oven temperature for {who_obj}? / At how many degrees does {who} bake? == Bake {who_obj} at {v}. / The oven should be at
{v} for {who_obj}.
@baking_time=minutes recipes :: {Who} needs {v}. / Leave {who_obj} in for {v}. / After {v} {who} is done. / I set the kitchen
clock to {v} for {who_obj}. / {Who} takes {v}, just enough for a shower. => {Who} needs {v} in the new oven. / I take {who_obj}
out after {v} now. ?? How long does {who} take? / For how long do I leave {who_obj} in? / When is {who} done? / What do I set
the kitchen clock to for {who_obj}? == {Who} takes {v}. / Leave {who_obj} in for {v}.
@amount=amount recipes :: {Who} needs {v} of flour. / Weigh {v} of flour for {who_obj}. / I use {v} of flour when I make
{who_obj}. / The old card for {who_obj} says {v} of flour. / With {v} of flour, {who} comes out just right. => I use {v} of
flour for {who_obj} now. / {Who} is better with {v} of flour. ?? How much flour goes into {who_obj}? / What amount of flour does
{who} need? / I'm weighing the flour for {who_obj}, how much? / Flour for {who_obj}? == {Who} needs {v} of flour. / Use {v} of
flour for {who_obj}.
@garden_plant=plant people :: {Who} planted {v} in the garden. / You can see {v} behind {whose} house. / {Who} [water|waters]
{his} {v} every evening. / The snails ate half of {whose} {v}. / This spring {who} put in {v}, nothing else. => {Who} dug that
up and planted {v} instead. / It's {v} in {whose} garden this year. ?? What did {who} plant? / What grows in {whose} garden? /
What [do|does] {who} water every evening? / Which plants [do|does] {who} have outside? == {Who} planted {v}. / In {whose} garden
there is {v}.
@weekend_plan=plan people :: This weekend {who} will {v}. / {Who} [want|wants] to {v} on Saturday. / If the weather holds, {who}
will {v} at the weekend. / {Whose} plan for the weekend is to {v}. / No time for visitors, {who} promised to {v} on Sunday. =>
Change of plans, {who} will {v} this weekend. / {Who} decided to {v} at the weekend instead. ?? What will {who} do at the
weekend? / What are {whose} weekend plans? / How [am|is] {who} going to spend the weekend? / Any plans for {who_obj} on Saturday
or Sunday? == {Who} will {v} at the weekend. / {Whose} plan is to {v}.
@present=gift others :: I bought {a} {v} as a present for {who_obj}. / {Who} will get {a} {v} from me. / {Who} mustn't know, but
I ordered {a} {v} as a gift. / There's {a} {v} in my closet, the present for {who_obj}. / For {whose} birthday I wrapped up {a}
{v}. => I returned that; {who} gets {a} {v} from me instead. / I found a better present for {who_obj}: {a} {v}. ?? What did I
buy for {who_obj}? / What present does {who} get from me? / What's my gift for {who_obj}? / What am I giving {who_obj}? == You
bought {a} {v} for {who_obj}. / The present for {who_obj} is {a} {v}.
@quit_reason=reason people :: {Who} quit because of {v}. / {Who} left the old job, and the reason was {v}. / It was {v} that
made {who_obj} hand in {his} notice. / Everyone asks why {who} resigned. It was {v}. / Because of {v}, {who} walked out of the
office for good. => The real reason why {who} quit was {v}. / In the end {who} quit over {v}. ?? Why did {who} quit? / What made
{who_obj} leave the old job? / For what reason did {who} resign? / What was behind {whose} resignation? == {Who} quit because of
{v}. / The reason why {who} left was {v}.
@mood_about=feeling people :: {Who} [am|is] {v} about the move. / The move is close and {who} [am|is] {v}. / When we talked
about the move, {who} said {he} felt {v}. / {Who} can't hide that {he} [am|is] {v} about moving. / Honestly, {v} is the word for
how {who} [feel|feels] about the move. => By now {who} [feel|feels] {v} about the move. / The mood has changed, {who} [am|is]
{v} about the move now. ?? How [do|does] {who} feel about the move? / What is {whose} mood about moving? / What [do|does] {who}
think of the move, emotionally? / How did I say {who} [feel|feels] about moving? == {Who} [are|is] {v} about the move. / {Who}
[feel|feels] {v} about moving.
@seat_preference=seatpref people :: {Who} always [want|wants] {v} on a plane. / Book {v} for {who_obj}. / {Who} [get|gets]
grumpy without {v}. / {Who} [fly|flies] better in {v}. / Whatever it costs, {who} [need|needs] {v} when flying. => {Who}
[prefer|prefers] {v} these days. / {Who} changed {his} mind and [want|wants] {v} when flying. ?? Where [do|does] {who} like to
sit on a plane? / Which seat should I book for {who_obj}? / What kind of seat [do|does] {who} prefer? / Seating preference of
{who_obj}? == {Who} [prefer|prefers] {v}. / Book {v} for {who_obj}.
@dislike=dislike people :: {Who} can't stand {v}. / Nothing annoys {who_obj} more than {v}. / {Who} left the room because of
{v}, which {he} [hate|hates]. / {Who} [have|has] no patience with {v}. / If there is one thing {who} [dislike|dislikes], it's
{v}. => What {who} can't stand any more is {v}. / {Who} got used to that, now it's {v} that {he} [hate|hates]. ?? What [do|does]
{who} dislike? / What annoys {who_obj}? / What can't {who} stand? / What should I avoid around {who_obj}? == {Who} can't stand
{v}. / What annoys {who_obj} is {v}.
@fear=fear people :: {Who} [am|is] afraid of {v}. / Since childhood {who} [have|has] been scared of {v}. / {Who} screamed,
because {he} [panic|panics] at {v}. / It's silly, but {v} can make {who_obj} shake. / {Whose} biggest fear is {v}. => {Who} got
over that, but [am|is] afraid of {v} now. / {Whose} biggest fear is {v} these days. ?? What [am|is] {who} afraid of? / What
scares {who_obj}? / What is {whose} biggest fear? / What makes {who_obj} panic? == {Who} [are|is] afraid of {v}. / {Whose}
biggest fear is {v}.
@first_concert=band people :: The first concert {who} ever went to was {v}. / {Who} was fifteen when {he} saw {v}, {his} first
concert. / {V} was the first band {who} saw live. / {Who} still [have|has] the ticket of {his} first concert, {v}. / For {whose}
first concert, it had to be {v}. => Come to think of it, {whose} first concert was {v}. / It was {v} that {who} saw first, not
the others. ?? What was {whose} first concert? / Which band did {who} see live first? / Whose ticket did {who} keep from {his}
first concert? / Who played at the first concert {who} went to? == {Whose} first concert was {v}. / {Who} first saw {v} live.
@met_partner=meeting couples :: {Who} first met {v}. / It's a funny story: {who} met {v}. / People never believe that {who} met
{v}. / When asked, {who} always say that they met {v}. / They married ten years later, but {who} met {v}. => I told it wrong,
{who} met {v}. / In truth {who} met {v}. ?? Where did {who} meet? / How did {who} get to know each other? / What's the story of
how {who} met? / Where was it that {who} met? == {Who} met {v}. / It was {v} that {who} met.
@siblings=count,children=count,grandchildren=count,cousins=count,houseplants=count,jigsaw_puzzles=count,unread_books=count
people :: {Who} [have|has] {v} {k}. / Someone asked how many {k} {who} [have|has]: {v}. / {Who} can't keep up with {his} {v}
{k}. / Having {v} {k}, {who} never [get|gets] bored. / For the record, {who} counted {v} {k}. => I miscounted, {who} [have|has]
{v} {k}. / As of today {who} [have|has] {v} {k}. ?? How many {k} [do|does] {who} have? / What's the number of {whose} {k}? / How
many {k} did I say {who} [have|has]? / {Whose} {k}, how many? == {Who} [have|has] {v} {k}. / The number of {whose} {k} is {v}.
@dream=goal people :: {Who} [dream|dreams] of {v}. / One day, {who} [hope|hopes], it will be time for {v}. / {Who} [save|saves]
every cent for {v}. / {Whose} big dream is {v}. / {Who} can talk for hours about {v}, the dream of {his} life. => {Who}
[have|has] a new dream: {v}. / {Who} gave up on that and [dream|dreams] of {v} now. ?? What is {whose} big dream? / What
[do|does] {who} dream of? / What [do|does] {who} want to achieve one day? / What [am|is] {who} saving for? == {Who}
[dream|dreams] of {v}. / {Whose} big dream is {v}.
@commute=transport people :: {Who} [get|gets] to work by {v}. / {Who} [take|takes] the {v} to work. / The {v} was late, and so
{who} missed the meeting. {He} always [go|goes] that way. / Without the {v} {who} wouldn't get to work at all. / Every morning
it's the {v} for {who_obj}. => {Who} [go|goes] to work by {v} now. / {Who} switched to the {v} for getting to work. ?? How
[do|does] {who} get to work? / What [do|does] {who} take in the morning? / What means of transport [do|does] {who} use for work?
/ How [do|does] {who} commute? == {Who} [go|goes] to work by {v}. / {Who} [take|takes] the {v} to work.
@day_off=weekday people :: {Whose} day off is {v}. / {Who} never [work|works] on a {v}. / We can only meet on a {v}, when {who}
[am|is] free. / The roster gives {who_obj} {v} off. / On {v} {who} [sleep|sleeps] late, as it's {his} free day. => {Whose} day
off was moved to {v}. / The new roster gives {who_obj} {v} off. ?? Which day [do|does] {who} have off? / When [am|is] {who} free
during the week? / What's {whose} day off? / On which day can {who} sleep late? == {Whose} day off is {v}. / {Who} [have|has]
{v} off.
@bedtime=late,wake-up_time=early,lunch_break=noon,gym_slot=time people :: {Whose} {k} is {v}. / Don't phone {who_obj} around
{v}, that's {his} {k}. / {Who} [have|has] {v} as {his} {k}, even on Sundays. / The alarm goes off at {v}, since that's {whose}
{k}. / It was past {v}, {whose} {k}, when the phone rang. => {Whose} {k} has shifted to {v}. / {Who} moved {his} {k} to {v}. ??
When is {whose} {k}? / What have I said about {whose} {k}? / Tell me {whose} {k}, please. / {Whose} {k}, when exactly? ==
{Whose} {k} is {v}. / It's {v}, that is {whose} {k}.
"""
